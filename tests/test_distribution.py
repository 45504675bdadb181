"""What is published: the files of wheel and source distribution; and that the core alone, once installed, trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.test_layers import FILES, ROOT, module_parts

PATIENCE = 3600.0  # seconds, most of them for downloads
BUILD = "import setuptools.build_meta as build, sys; print(getattr(build, f'build_{sys.argv[1]}')(sys.argv[2]))"
CORE_COMMANDS = [
    "tql data inspect mine.npz",
    "tql fit --config quickstart --config smoke --data.dataset=mine.npz --trainer.default_root_dir=run",
    "tql evaluate run/checkpoints/last.ckpt --episodes 2",
    "tql report run --output report.html",
    "tql export run/checkpoints/last.ckpt --format torch --output policy",
]
WITHOUT_AN_EXTRA = {
    "ogbench": "tql fit --config ogbench/cube-single --config smoke --trainer.default_root_dir=absent",
    "minari": "tql fit --config smoke --data.dataset=minari:a/b/expert-v0 --trainer.default_root_dir=absent",
    "d4rl": "tql fit --config smoke --data.dataset=mine.hdf5 --trainer.default_root_dir=absent",
    "video": "tql evaluate run/checkpoints/last.ckpt --video film",
    "export": "tql export run/checkpoints/last.ckpt --output onnx",
}


def run(command: str, folder: Path, environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of a virtual environment."""
    program, *words = command.split()
    search = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": search}
    whole = [str(environment / "bin" / program), *words, *arguments]
    return subprocess.run(whole, cwd=folder, env=found, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source distribution of the files that git knows, built beside the repository."""
    source, output = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    for kind in ("sdist", "wheel"):
        command = [sys.executable, "-c", BUILD, kind, str(output)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,), (archive,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return {"wheel": wheel, "source": archive}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    code = {"/".join(("tql_lightning", *module_parts(path))) + ".py" for path in FILES}
    configurations = {f"tql_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    page = {f"tql_lightning/report/{name}" for name in ("template.html", "style.css", "charts.js")}
    assert inside == {*code, *configurations, *page, "tql_lightning/__init__.py", "tql_lightning/py.typed"}
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(built["wheel"]) as archive:
        assert "tql = tql_lightning.cli.main:main" in archive.read(entry).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_is_the_same(built: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(built["source"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-c", BUILD, "wheel", str(tmp_path)], cwd=source, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as second, zipfile.ZipFile(built["wheel"]) as first:
        assert {each.filename: each.CRC for each in second.infolist()} == {
            each.filename: each.CRC for each in first.infolist()
        }


def interpreter(version: str) -> str:
    """A Python of this version: the machine's, or else one that uv downloads."""
    versions = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in filter(None, [shutil.which(f"python{version}"), *map(str, versions)]):
        if subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            return found
    uv = shutil.which("uv", path=f"{Path(sys.prefix) / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None, f"needs Python {version}, or uv to download it: run by make test-slow"
    subprocess.run([uv, "python", "install", version], check=True)
    return subprocess.run([uv, "python", "find", version], check=True, capture_output=True, text=True).stdout.strip()


def installed(environment: Path, python: str, *packages: str) -> Path:
    """A new virtual environment with these packages and what they need."""
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    found = run("pip install --quiet", environment, environment, *packages)
    assert found.returncode == 0, found.stderr
    checked = run("pip check", environment, environment)
    assert checked.returncode == 0, checked.stdout
    return environment


def write_data(folder: Path) -> None:
    """A dataset of random transitions of Pendulum's sizes."""
    rng, size = np.random.default_rng(0), 400
    np.savez(
        folder / "mine.npz",
        observations=rng.normal(size=(size, 3)),
        actions=rng.uniform(-2, 2, size=(size, 1)),
        rewards=rng.normal(size=size),
        terminations=np.zeros(size),
        truncations=np.arange(size) % 100 == 99,
        action_low=-2.0,
        action_high=2.0,
        env_id="Pendulum-v1",
    )
    (folder / "mine.hdf5").touch()


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_the_core_alone_trains_and_names_each_extra_before_training(built: dict[str, Path], tmp_path: Path) -> None:
    pinned = ["-c", str(ROOT / "constraints.txt")]
    environment = installed(tmp_path / "environment", sys.executable, *pinned, str(built["wheel"]))
    write_data(tmp_path)
    for command in CORE_COMMANDS:
        finished = run(command, tmp_path, environment)
        assert finished.returncode == 0, f"{command}: {finished.stderr}"
    for extra, command in WITHOUT_AN_EXTRA.items():
        finished = run(command, tmp_path, environment)
        assert finished.returncode == 2, f"{command}: {finished.stderr}"
        assert f"tql-lightning[{extra}]" in finished.stderr, f"{command}: {finished.stderr}"
        assert len(finished.stderr.splitlines()) < 6, finished.stderr
    assert not (tmp_path / "absent" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize(("python", "torch"), [("3.11", "torch==2.8.*"), ("3.12", "torch"), ("3.13", "torch")])
def test_other_pythons_and_torches_train(python: str, torch: str, built: dict[str, Path], tmp_path: Path) -> None:
    environment = installed(tmp_path / "environment", interpreter(python), torch, str(built["source"]))
    write_data(tmp_path)
    for command in CORE_COMMANDS:
        finished = run(command, tmp_path, environment)
        assert finished.returncode == 0, f"{command}: {finished.stderr}"
    shutil.rmtree(environment)  # several GB


def test_the_workflow_that_publishes_calls_what_there_is() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["publish"]["steps"] if "run" in step]
    targets = re.findall(r"make ([\w-]+)", "\n".join(commands))
    assert targets == ["publish"]
    assert ".ci/run" in commands
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
