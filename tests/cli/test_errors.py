"""What ``tql`` says when the user errs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import run_tql
from tql_lightning.cli.main import main

TINY = ("--config", "tiny.yaml")
TOY = "--data.dataset=tests.toy.toy_dataset"

MISTAKES = {
    "unknown option": (
        ["fit", TOY, "--trainer.max_stps=4"],
        ["did you mean --trainer.max_steps"],
    ),
    "unknown option of collect": (["collect", "X-v0", "--transtions=3"], ["did you mean --transitions"]),
    "wrong type": (["fit", TOY, "--trainer.max_steps=many"], ["trainer.max_steps", "int", "many"]),
    "wrong choice": (["fit", TOY, "--model.extraction=fqll"], ["model.extraction", "'implicit'", "fqll"]),
    "out of range": (["fit", TOY, "--model.discount=2"], ["model.discount", "between 0 and 1", "2.0"]),
    "chunk of no action": (["fit", TOY, "--data.action_chunk=0"], ["data.action_chunk", "at least 1", "0"]),
    "discount set twice": (["fit", TOY, "--data.discount=0.9"], ["data.discount"]),
    "unknown storage": (["fit", TOY, "--data.storage=gpu"], ["data.storage", "'trainer'", "gpu"]),
    "unknown module": (["fit", TOY, "--model.critic=nowhere.Critic"], ["model.critic", "No module named 'nowhere'"]),
    "unknown class": (["fit", TOY, "--model.critic=tql_lightning.TQQ"], ["model.critic", "TQQ"]),
    "unknown argument of a class": (["fit", TOY, "--model.critic.hiden_dim=3"], ["'hiden_dim' is not accepted"]),
    "unknown callback": (["fit", TOY, "--trainer.callbacks+=tests.toy.Nope"], ["trainer.callbacks", "'Nope'"]),
    "not a dataset": (["fit", "--data.dataset=json.loads"], ["data.dataset", "json.loads"]),
    "no dataset": (["fit"], ["data.dataset", "required"]),
    "missing dataset file": (["fit", "--config", "quickstart"], ["Pendulum-v1.npz: no such file", "tql collect"]),
    "unknown task": (["fit", "--config", "ogbench/scene", "--data.dataset.task=6"], ["data.dataset.task", "found 6"]),
    "unknown configuration": (["fit", "--config", "size/27m"], ["size/27m", "size/26m"]),
    "unknown key in a file": (["fit", "--config", "unknown_key.yaml"], ["model.discont"]),
    "unknown callback argument in a file": (["fit", TOY, "--config", "callback.yaml"], ["'epsodes' is not accepted"]),
    "damaged file": (["fit", "--config", "damaged.yaml"], ["parsing"]),
    "dangling interpolation": (["fit", TOY, "--config", "dangling.yaml"], ["nowhere.to_be_found", "model.discount"]),
    "report on nothing": (["report", "nothing"], ["report nothing", "no such folder"]),
    "missing checkpoint of export": (["export", "nothing.ckpt"], ["nothing.ckpt: no such file"]),
    "wrong format of export": (["export", "x.ckpt", "--format=onx"], ["onx", "torch"]),
    "missing checkpoint of evaluate": (["evaluate", "nothing.ckpt"], ["nothing.ckpt: no such file"]),
    "a folder for a checkpoint": (["evaluate", "."], ["checkpoint .: expected a file, found a folder", ".ckpt"]),
    "a folder for a file to write": (
        ["evaluate", "a.ckpt", "--json", "."],
        [".: expected a file to write, found a folder"],
    ),
    "nothing to film": (["evaluate", "x.ckpt", "--video_episodes=0"], ["video_episodes: expected at least 1, found 0"]),
    "missing checkpoint of fit": (["fit", TOY, *TINY, "--ckpt_path=nothing.ckpt"], ["nothing.ckpt"]),
    "weights of 16 bits": (
        ["fit", TOY, *TINY, "--trainer.precision=bf16-true"],
        ["trainer.precision", "bf16-mixed"],
    ),
    "compiled shares of weights": (
        ["fit", TOY, *TINY, "--trainer.strategy=sharded", "--trainer.devices=2", "--model.execution.compile=true"],
        ["model.execution.compile", "trainer.strategy=sharded", "ddp"],
    ),
    "validate without checkpoint": (["validate", TOY, *TINY], ["ckpt_path", "--ckpt_path=last"]),
    "unknown environment": (["collect", "Pendulm-v1", "--output=x.npz"], ["Pendulm", "Pendulum"]),
    "unknown command": (["fitt"], ["fitt", "evaluate"]),
    "no command": ([], ["fit", "collect"]),
    "Python objects in a file": (["fit", TOY, "--config", "objects.yaml"], ["tag", "python/object"]),
    "a file of endless aliases": (["fit", TOY, "--config", "aliases.yaml"], ["aliases.yaml: YAML", "100,000 values"]),
    "a file within itself": (["fit", TOY, "--config", "itself.yaml"], ["found *a within itself"]),
    "a deep file": (["fit", TOY, "--config", "deep.yaml"], ["deep.yaml: YAML", "40 deep"]),
    "a file of other bytes": (["fit", TOY, "--config", "bytes.yaml"], ["bytes.yaml", "utf-8"]),
}
FILES = {
    "unknown_key.yaml": "model:\n  discont: 0.9\ndata:\n  dataset: tests.toy.toy_dataset\n",
    "callback.yaml": (
        "trainer:\n  callbacks:\n    - class_path: tql_lightning.callbacks.rollout_evaluation.RolloutEvaluation\n"
        "      init_args:\n        epsodes: 3\n"
    ),
    "damaged.yaml": "model:\n  discount: [\n",
    "objects.yaml": "model: !!python/object/apply:os.system ['touch executed']\n",
    "aliases.yaml": "x0: &x0 [1, 1]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40)),
    "itself.yaml": "trainer: &a {callbacks: *a}\n",
    "deep.yaml": "model: " + "[" * 900 + "]" * 900 + "\n",
    "bytes.yaml": "\udcff\udcfe",
    "dangling.yaml": "model:\n  discount: ${nowhere.to_be_found}\n",
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_a_few_lines_that_say_what_to_mend(
    arguments: list[str], expected: list[str], command_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        (command_folder / name).write_text(text, errors="surrogateescape")
    code = main(arguments)
    message = capsys.readouterr().err[-3000:]
    message = message[message.index("tql: ") :]
    assert code == 2
    assert len(message.splitlines()) <= 10
    assert "Traceback" not in message
    assert [word for word in expected if word not in message] == [], message


def test_a_trainer_that_cannot_train_is_refused_before_a_run_is_begun(command_folder: Path) -> None:
    assert main(["fit", TOY, *TINY, "--trainer.precision=bf16-true"]) == 2
    assert not (command_folder / "run").exists()


@pytest.mark.parametrize(
    "refused",
    [
        ("--trainer.callbacks+=RolloutEvaluation",),  # by a callback: the toy names no environment
        ("--data.updates_per_step=3",),  # by a callback that comes after all others
        ("--model.execution.cuda_graphs=true",),  # by the model
    ],
)
def test_a_start_that_is_refused_leaves_nothing_and_changes_no_run(
    refused: tuple[str, ...], command_folder: Path
) -> None:
    assert main(["fit", TOY, *TINY, *refused, "--trainer.default_root_dir=new"]) == 2
    assert not (command_folder / "new").exists()
    run = command_folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("as it was")
    assert main(["fit", TOY, *TINY, *refused, "--trainer.default_root_dir=run"]) == 2
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "as it was"


def test_a_mistake_in_a_new_process_prints_no_traceback(tmp_path: Path) -> None:
    finished = run_tql(tmp_path, "fit", "--config", "quickstart", "--trainer.max_steps=ten")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) <= 10
    assert "Traceback" not in finished.stderr


@pytest.mark.usefixtures("command_folder")
def test_the_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQL_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"nothing\.ckpt: no such file"):
        main(["evaluate", "nothing.ckpt"])
