"""Imports go one way, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tql_lightning

ROOT = Path(__file__).parents[1]
PACKAGE = "tql_lightning"

# A file imports only from files above it. `callbacks` stands apart: it observes, and nothing imports it.
ORDER = [
    *("batch", "extraction", "run_folder", "run_lock", "trust", "yaml_text"),
    *("data.files", "full_disk"),
    *("provenance", "data.mapped", "data.checks", "data.claims", "data.flatten", "data.transitions"),
    *("data.environment",),
    *("data.sources.schema", "data.sources.npz", "data.sources.npy_folder", "data.sources.ogbench"),
    *("data.sources.d4rl_scores", "data.sources.hdf5", "data.sources.d4rl", "data.sources.minari"),
    *("data.named", "data.summary"),
    *("data.storage", "data.windows", "data.counter_random", "data.sampler", "data.datamodule"),
    *("data.behaviours", "data.partial", "data.gather", "data.pointmaze", "data.collect_ogbench", "data.collect"),
    *("losses", "nn.initialisation", "nn.weight_decay", "nn.attention_components", "nn.scalar_tokens"),
    *("nn.attention_operator", "nn.chunked_attention", "nn.triton_attention", "nn.attention"),
    *("nn.attention_weights", "nn.temperature", "nn.tokenizer"),
    *(
        "nn.feedforward",
        "nn.rational",
        "nn.structured",
        "nn.structured_feedforward",
        "nn.transformer",
        "nn.sigma_reparam",
        "nn.mlp",
        "nn.value_loss",
        "nn.critic",
        "nn.policy",
    ),
    *("torch_file", "policy_folder", "policy", "class_paths", "checkpoint_io"),
    *("hyperparameters", "captured", "processes", "precision", "sharding"),
    *("signals", "chunks", "held_out", "divergence", "out_of_memory"),
    *("shortcuts", "update_step", "loops", "optimisation", "tql"),
    *("resuming", "landscape"),
    *("metrics", "envs", "side_by_side"),
    *("rollout", "watched_rollout", "videos", "interop", "evaluation", "background_evaluation"),
    *("plots", "pictures", "media", "metrics_file", "loggers"),
    *("observations", "comparison", "export", "statistics"),
    *("report.runs", "report.methods", "report.charts", "report.media", "report.page"),
    *("quickstart", "data_commands", "evaluate_command", "sharing_commands", "commands"),
    *("configs", "close_names", "errors", "lightning_cli", "cli", "__main__"),
]


def sources() -> dict[str, Path]:
    """Modules by dotted name without the package's; packages' own files only where they hold code."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, by dotted name without the package's."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {node.module} if node.module != PACKAGE else {f"{PACKAGE}.{alias.name}" for alias in node.names}
    return {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}


def is_callback(name: str) -> bool:
    return name.split(".")[0] == "callbacks"


MODULES = {name: path for name, path in sources().items() if not is_callback(name)}


def test_every_module_has_a_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_module_imports_only_from_above(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)])
    assert imported(MODULES[name]) <= above


@pytest.mark.parametrize("name", ORDER)
def test_the_package_knows_nothing_of_callbacks(name: str) -> None:
    assert not [target for target in imported(MODULES[name]) if is_callback(target)]


def test_nothing_imports_callbacks_as_a_top_level_package() -> None:
    folders = (ROOT / PACKAGE, ROOT / "callbacks", ROOT / "tests")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            roots = [node.module] if isinstance(node, ast.ImportFrom) else []
            roots += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "callbacks" not in {(root or "").split(".")[0] for root in roots}, path


def test_callbacks_import_from_the_package_and_never_the_command_line() -> None:
    for path in (ROOT / "callbacks").glob("*.py"):
        allowed = {name for name in ORDER if ORDER.index(name) < ORDER.index("quickstart")}
        assert {name for name in imported(path) if not is_callback(name)} <= allowed, path


def run_python(code: str) -> list[str]:
    """Words that a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_package_is_fast_and_pulls_in_nothing_heavy() -> None:
    took, *heavy = run_python(
        "import sys, time; start = time.process_time(); import tql_lightning; took = time.process_time() - start;"
        "heavy = {'torch', 'lightning', 'gymnasium', 'matplotlib', 'tensorboard', 'ogbench', 'h5py', 'minari'};"
        "print(took, *sorted(heavy & set(sys.modules)))"
    )
    assert heavy == []
    assert float(took) < 3.0  # of the processor's time, which other programs do not lengthen


def test_the_algorithm_pulls_in_no_environment_or_logger() -> None:
    heavy = run_python(
        "import sys; from tql_lightning import TQL, OfflineDataModule, RolloutResult;"
        "print(*sorted({'gymnasium', 'tensorboard', 'ogbench', 'h5py'} & set(sys.modules)))"
    )
    assert heavy == []


def test_every_public_name_stays_what_it_is_once_its_module_is_loaded() -> None:
    for _ in range(2):
        for name in tql_lightning.__all__:
            assert getattr(tql_lightning, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TQQ'"):
        tql_lightning.TQQ  # noqa: B018
