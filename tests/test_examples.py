"""The Python interface: what the package shows, the examples in its docstrings, and a whole run in one script."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tql_lightning
from tests.toy import toy_dataset
from tql_lightning import callbacks, loggers
from tql_lightning.cli.main import main
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.schema import fields_of
from tql_lightning.export.writer import export_checkpoint

ROOT = Path(__file__).parents[1]
PACKAGES = (tql_lightning, callbacks, loggers)
EXAMPLES = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in PACKAGES
    for name in package.__all__
    if callable(getattr(package, name))
}
DOCUMENT = ROOT / "docs" / "python.md"
PAGES = "\n".join(path.read_text() for path in sorted(DOCUMENT.parent.glob("*.md")))
for path in re.findall(r"^::: ([\w.]+)$", PAGES, flags=re.MULTILINE):
    module, _, own_name = path.rpartition(".")
    documented = getattr(importlib.import_module(module), own_name)
    if inspect.isclass(documented) and not issubclass(documented, Exception) and documented not in EXAMPLES.values():
        EXAMPLES[path] = documented
if not find_spec("trackio"):
    del EXAMPLES["tql_lightning.loggers.TrackioLogger"]
CLASSES = [name for name, found in EXAMPLES.items() if inspect.isclass(found)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the document's script has run, small, and that holds what examples load."""
    folder = tmp_path_factory.mktemp("examples")
    script = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)[0]
    small = {
        '"), 1_250': '"), 10',
        "warmup_updates=50": "warmup_updates=2",
        "log_every_n_steps=50": "log_every_n_steps=5",
        "discount=0.97,": "discount=0.97, critic=critic, policy=policy,",
        "updates // 5)": "5, episodes=2)",
    }
    for shown, replaced in small.items():
        assert shown in script
        script = script.replace(shown, replaced)
    parts = {
        "critic": partial(tql_lightning.TransformerCritic, hidden_dim=16, head_dim=8),
        "policy": partial(tql_lightning.FlowPolicy, hidden_dims=[16], flow_steps=2),
    }
    arrays, settings = fields_of(toy_dataset(env_id="Pendulum-v1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("datasets").mkdir()
        for path in ("mine.npz", "datasets/Pendulum-v1.npz"):
            save_npz(path, **arrays, **settings)
        exec(script, parts)  # the document's own code
        export_checkpoint(Path("runs/script/seed_0/checkpoints/last.ckpt"), Path("policy"), "torch")
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(EXAMPLES[name]) or "")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = EXAMPLES[name]
    module = importlib.import_module(found.__module__)
    text = inspect.getdoc(found) or ""
    names = {"torch": torch, "nn": torch.nn, "np": np, "Path": Path, **vars(module)}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    printed: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert failed == 0, "".join(printed)


def test_one_short_script_loads_trains_evaluates_draws_and_reports(folder: Path) -> None:
    """The fixture has run it."""
    script = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)[0]
    lines = [line for line in script.splitlines() if line]
    assert len(lines) <= 25
    assert sum("import" in line for line in lines) == 3
    run = folder / "runs" / "script" / "seed_0"
    for name in ("metrics.csv", "return.png", "report.html", "checkpoints/best.ckpt", "tensorboard"):
        assert (run / name).exists(), name
    assert main(["report", str(run.parent), "--output", str(folder / "again.html")]) == 0
    assert "Pendulum-v1" in (folder / "again.html").read_text()


def test_importing_the_package_shows_its_names_and_loads_none_of_them() -> None:
    code = "import sys, tql_lightning, tql_lightning.callbacks as c; print(dir(tql_lightning)); print(dir(c)); "
    code += "print({'torch', 'lightning', 'numpy'} & {*sys.modules})"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    shown, of_callbacks, loaded = finished.stdout.splitlines()
    assert "'TQL'" in shown
    assert "'RolloutEvaluation'" in of_callbacks
    assert "'_" not in shown + of_callbacks
    assert loaded == "set()"


@pytest.mark.parametrize("package", PACKAGES[:2])
def test_the_names_that_type_checkers_see_are_those_that_load(package: Any) -> None:
    source = inspect.getsource(package)
    declared = re.findall(r"^    from ([\w.]+) import (\w+) as \2$", source, flags=re.MULTILINE)
    assert {name for _, name in declared} == {*package.__all__}
    for module, name in declared:
        assert getattr(importlib.import_module(module), name, None) in (getattr(package, name), None)


@pytest.mark.filterwarnings("ignore:Attribute 'critic' is an instance of `nn.Module`")
@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"critic": lambda *sizes: tql_lightning.MLPCritic(*sizes, [8])}, r"model.critic: .* found <lambda>"),
        ({"critic": tql_lightning.MLPCritic(3, 1)}, r"model.critic: expected a class .*, found MLPCritic"),
        (
            {"policy": partial(tql_lightning.FlowPolicy, hidden_dims=lambda: [3])},
            r"model.policy.init_args.hidden_dims: .* found function",
        ),
    ],
)
def test_a_part_that_no_checkpoint_can_name_is_refused_when_the_model_is_made(
    setting: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        tql_lightning.TQL(3, 1, **setting)
