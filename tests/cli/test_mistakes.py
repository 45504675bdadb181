"""What a newcomer gets wrong: the message names the place, the file and what was meant, before anything is made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import ParsedOnly, call_tql
from tql_lightning.cli.close_names import RELEASE_NAMES, close_options, option_names
from tql_lightning.cli.configs import resolve_configs

ROOT = Path(__file__).parents[2]
TOY = "--data.dataset=tests.toy.toy_dataset"
FILES = {
    "misplaced.yaml": "bc_coefficient: 3.0\n",
    "unknown.yaml": "trainer:\n  max_updates: 100\n",
    "whole.yaml": "fit:\n  trainer:\n    max_steps: 20\n",
    "type.yaml": "trainer:\n  max_steps: many\n",
    "indented.yaml": "data:\n  batch_size: 64\n seed: 3\n",
    "empty.yaml": "# nothing yet\n",
    "list.yaml": "- model\n",
    "beside.yaml": "model:\n  critic:\n    class_path: tql_lightning.TransformerCritic\n    hidden_dim: 64\n",
    "named.yaml": "data:\n  dataset: mine.npz\n",
    "discount.yaml": "data:\n  discount: 0.9\n",
    "chunk.yaml": "model:\n  action_chunk: 4\n",
    "targets.yaml": "model:\n  entropy_control:\n    class_path: tql_lightning.AttentionTemperature\n"
    "    init_args: {targets: [3.0, 2.5]}\n",
    "my_parts.py": "def my_data(rows: int = 3):\n    return None\n",
    "my_syntax.py": "def my_data(:\n",
}
MISTAKES = {
    "an option of a part": (["fit", TOY, "--model.hidden_dim=64"], ["did you mean --model.critic.hidden_dim?"]),
    "an option without its place": (["fit", TOY, "--max_steps=9"], ["did you mean --trainer.max_steps?"]),
    "an option without dashes": (["fit", TOY, "max_steps=9"], ["did you mean --trainer.max_steps?"]),
    "a name of the release": (["fit", TOY, "--model.alpha=9"], ["did you mean --model.bc_coefficient?"]),
    "an option of one part": (["fit", TOY, "--model.num_layers=9"], ["did you mean --model.critic.num_layers?"]),
    "an argument of a class": (["fit", TOY, "--model.critic.hidden_dims=9"], ["did you mean hidden_dim or"]),
    "an argument of a function": (["fit", TOY, "--data.dataset.sizes=9"], ["did you mean size?"]),
    "a class": (["fit", TOY, "--model.critic=tql_lightning.nn.critic.MLPCritc"], ["did you mean MLPCritic"]),
    "a short form": (["fit", TOY, "--trainer.max_step=3"], ["did you mean --trainer.max_steps?"]),
    "a short form of the model's": (["fit", TOY, "--model.bc_coef=3"], ["did you mean --model.bc_coefficient?"]),
    "a short form of a command's": (["report", "run", "--out=x"], ["did you mean --output?"]),
    "a name of the field": (["fit", TOY, "--model.gamma=0.9"], ["did you mean --model.discount?"]),
    "a class by name": (["fit", TOY, "--model.critic=MLPCriticc"], ["did you mean MLPCritic"]),
    "a callback by name": (["fit", TOY, "--trainer.callbacks+=RolloutEvaluaton"], ["did you mean RolloutEvaluation?"]),
    "a configuration without its flag": (["fit", TOY, "quickstart"], ["did you mean --config quickstart?"]),
    "a command of others": (["train", TOY], ["train: no such command; did you mean fit?"]),
    "a command": (["evaluat", "x"], ["did you mean evaluate?"]),
    "a misplaced key": (
        ["fit", TOY, "--config=misplaced.yaml"],
        ["did you mean model.bc_coefficient?", "it stands in misplaced.yaml"],
    ),
    "an unknown key": (["fit", TOY, "--config", "unknown.yaml"], ["trainer.max_steps", "it stands in unknown.yaml"]),
    "a command's file": (["fit", TOY, "--config", "whole.yaml"], ["did you mean trainer.max_steps?", "whole.yaml"]),
    "a wrong type": (["fit", TOY, "--config", "type.yaml"], ["trainer.max_steps", "many", "it stands in type.yaml"]),
    "an indent": (["fit", TOY, "--config", "indented.yaml"], ['in "indented.yaml", line 3, column 2']),
    "an empty file": (["fit", TOY, "--config", "empty.yaml"], ["--config empty.yaml", "found nothing"]),
    "a list": (["fit", TOY, "--config", "list.yaml"], ["--config list.yaml", "found a list"]),
    "a run's folder as file": (["fit", TOY, "--config", "run"], ["found a folder; give run/config.yaml"]),
    "no init_args": (["fit", TOY, "--config", "beside.yaml"], ["beside class_path stands init_args", "beside.yaml"]),
    "a dataset's name": (["fit", "--config", "named.yaml"], ["named.yaml: data.dataset", "{name: 'mine.npz'}"]),
    "a setting of the model": (["fit", TOY, "--config", "discount.yaml"], ["data.discount", "set model.discount"]),
    "a setting of the data": (["fit", TOY, "--config", "chunk.yaml"], ["model.action_chunk", "set data.action_chunk"]),
    "flat targets": (["fit", TOY, "--config", "targets.yaml"], ['Parser key "targets"', "3.0"]),
    "no annotation": (["fit", "--data.dataset=my_parts.my_data"], ["def my_data(...) -> TransitionDataset"]),
    "a syntax error": (["fit", "--data.dataset=my_syntax.my_data"], ["my_syntax.py, line 1"]),
    "no updates": (["fit", TOY, "--trainer.max_steps=0"], ["schedule_updates", "trainer.max_steps", "found 0"]),
    "lightning's clipping": (
        ["fit", TOY, "--trainer.gradient_clip_val=1", "--trainer.callbacks=null"],
        ["trainer.gradient_clip_val", "model.optimisation.gradient_clip_norm"],
    ),
    "lightning's accumulation": (
        ["fit", TOY, "--trainer.accumulate_grad_batches=2", "--trainer.callbacks=null"],
        ["trainer.accumulate_grad_batches", "data.batch_size"],
    ),
    "another device": (
        ["fit", TOY, "--trainer.accelerator=mps"],
        ["trainer.accelerator=mps", "--trainer.accelerator=cpu"],
    ),
    "an option without value": (["collect", "Pendulum-v1", "--transitions"], ["--transitions=3"]),
    "a run's folder as checkpoint": (
        ["evaluate", "run"],
        ["run: expected a file, found a folder", "give run/checkpoints/last.ckpt"],
    ),
    "names of D4RL": (
        ["data", "inspect", "d4rl.npz"],
        ["unknown: terminals, timeouts", "keys='{terminations: terminals, truncations: timeouts}'"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder of a newcomer's files, and something like a run's."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "config.yaml").touch()
    (folder / "run" / "checkpoints" / "last.ckpt").touch()
    column = np.zeros(4)
    rows = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 1)), "rewards": column}
    np.savez(folder / "d4rl.npz", **rows, terminals=column, timeouts=column)
    return folder


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_newcomers_mistake_is_answered_with_what_was_meant(
    arguments: list[str], expected: list[str], folder: Path
) -> None:
    before = {*folder.rglob("*")}
    finished = call_tql(folder, *arguments)
    message = finished.stderr[finished.stderr.index("tql: ") :]
    assert finished.returncode == 2
    assert len(message.splitlines()) <= 10
    assert [word for word in expected if word not in message] == [], message
    made = [path for path in {*folder.rglob("*")} - before if path.is_file() and "__pycache__" not in path.parts]
    assert made == []


@pytest.mark.parametrize(
    "command", [["collect", "X-v0", "--alpha=3"], ["report", "run", "--seed=3"], ["fit", TOY, "--foo=3"]]
)
def test_what_is_close_to_no_option_of_a_command_is_answered_with_none(command: list[str], folder: Path) -> None:
    assert "did you mean" not in call_tql(folder, *command).stderr


def test_a_start_that_cannot_be_is_refused_without_lightning(folder: Path) -> None:
    (folder / "runs" / "tql" / "seed_0" / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (folder / "runs" / "tql" / "seed_0" / name).touch()
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "empty").mkdir()
    (folder / "npz.yaml").write_text(
        "data:\n  dataset: {class_path: tql_lightning.data.sources.npz.load_npz, init_args: {path: absent.npz}}\n"
    )
    starts = {
        "fit --data.dataset=tests.toy.toy_dataset --trainer.default_root_dir=runs/tql/seed_0": "holds an earlier run",
        "fit --config ogbench/cube-double --trainer.default_root_dir runs/tql/seed_0": "holds an earlier run",
        "fit --config quickstart --ckpt_path=absent.ckpt": "checkpoint absent.ckpt: no such file",
        "fit --config quickstart --ckpt_path=text.ckpt": "checkpoint text.ckpt: damaged",
        "fit --config quickstart --ckpt_path=d4rl.npz": "checkpoint d4rl.npz: damaged, or holds more",
        "fit --config quickstart --ckpt_path=run": "checkpoint run: expected a file, found a folder; give run/checkp",
        "fit --config quickstart --ckpt_path=null --weights=d4rl.npz": "checkpoint d4rl.npz: damaged",
        "fit --config quickstart --weights=empty": "checkpoint empty/checkpoints/last.ckpt: no such file",
        "fit --config quickstart --weights absent.ckpt": "checkpoint absent.ckpt: no such file",
        "evaluate text.ckpt": "checkpoint text.ckpt: damaged",
        "evaluate d4rl.npz": "checkpoint d4rl.npz: damaged",
        "evaluate empty": "checkpoint empty: expected a file, found a folder; name a .ckpt file in it",
        "evaluate /dev/zero": "/dev/zero: expected a file, found a pipe, a folder or a device",
        "export run": "checkpoint run: expected a file, found a folder; give run/checkpoints/last.ckpt",
        "certify empty": "checkpoint empty/checkpoints/last.ckpt: no such file",
        "test --config quickstart --ckpt_path=last --seed_everything=7": "last checkpoint (runs/pendulum/tql/seed_7)",
        "fit --data.dataset=absent.npz": "absent.npz: no such file",
        "fit --config npz.yaml": "absent.npz: no such file",
        "fit --data.dataset=absent.hdf5": "absent.hdf5: no such file",
        "fit": "data.dataset: required, found none; add --data.dataset=mine.npz",
        "fit --data.dataset=Pendulum": "Pendulum: expected minari:ID, an OGBench name",
        "fit --data.dataset=cube-double-play-v0": "cube-double-play-singletask-task1-v0",
        "fit --data.dataset=datasets/Hopper-v5.npz": "tql collect Hopper-v5 --output datasets/Hopper-v5.npz",
        "evaluate absent.ckpt": "checkpoint absent.ckpt: no such file",
        "export absent.ckpt": "checkpoint absent.ckpt: no such file",
        "certify absent": "checkpoint absent: no such file",
        "--hlep": "--hlep: expected a command before options",
        "evaluat x.ckpt": "did you mean evaluate?",
    }
    code = "import sys; from tql_lightning.cli.main import main; "
    code += f"print([main(start.split()) for start in {[*starts]!r}], {{'lightning', 'torch'}} & {{*sys.modules}})"
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    assert finished.stdout.strip() == f"{[2] * len(starts)} set()"
    assert [word for word in starts.values() if word not in finished.stderr] == []


def test_every_setting_of_the_release_leads_to_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tql", *resolve_configs(["fit", TOY], ["fit"])])
    options = option_names(ParsedOnly()._subcommand_parsers["fit"])
    assert {*RELEASE_NAMES.values()} <= options.keys()
    settings = json.loads((ROOT / "tests" / "golden" / "A" / "config.json").read_text())["config"]
    elsewhere = {"action_dim", "ob_dims", "agent_name", "optimizer"}  # the dataset's, or weight_decay 0
    assert [name for name in settings if name not in elsewhere and not close_options(name, options)] == []
    assert close_options("hidden_dim", options) == ["--model.critic.hidden_dim"]
    text = (ROOT / "docs" / "fidelity.md").read_text()
    table = text[text.index("## The release's settings") :]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)`", table, flags=re.MULTILINE))
    assert rows == {name: option.removeprefix("--") for name, option in RELEASE_NAMES.items() if name in settings}


def test_the_version_and_a_mistake_in_a_light_command_import_no_lightning(tmp_path: Path) -> None:
    code = "import sys; from tql_lightning.cli.main import main; "
    code += "main(['--version']); main(['data', 'inspect', 'absent.npz']); "
    code += "print([name for name in ('lightning', 'torch') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "absent.npz: no such file" in finished.stderr
    told, imported = finished.stdout.splitlines()
    assert told.startswith("tql-lightning ")
    assert imported == "[]"
