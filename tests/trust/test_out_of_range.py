"""Values of the right type and out of any range: refused in a few words, or shown as what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import TINY, call_tql
from tests.export.test_policy import trained
from tests.marks import slow_after
from tests.report.runs import make_run
from tql_lightning.loggers.csv_logger import MetricsFile
from tql_lightning.report.page import write_report
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint

DATA = "--data.dataset=tests.toy.toy_dataset"
DIGITS = "9" * 400

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def forged(whole: Path, folder: Path, change: Change) -> Path:
    raw = torch.load(whole, weights_only=True)
    change(raw)
    torch.save(raw, folder / "forged.ckpt")
    return folder / "forged.ckpt"


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), 1.5, -2, 2**80, 10**400, True, None, "5", [5], torch.tensor(5)]
)
def test_a_number_of_updates_that_no_run_reaches_is_refused(value: object, whole: Path, tmp_path: Path) -> None:
    for name in ("global_step", "validated_update", "epoch"):
        path = forged(whole, tmp_path, lambda raw, name=name: raw.update({name: value}))
        with pytest.raises(CheckpointError, match=rf"{name}: expected a whole number up to|more than 32 bytes"):
            read_checkpoint(path)


def of_last_checkpoint(**changes: object) -> Change:
    return lambda raw: next(state for key, state in raw["callbacks"].items() if "Last" in key).update(changes)


def of_loops(name: str, **changes: object) -> Change:
    return lambda raw: raw["loops"]["fit_loop"][name]["current"].update(changes)


STATES: dict[str, Change] = {
    "loops": lambda raw: raw.update(loops=[]),
    "loops of nothing": lambda raw: raw.update(loops={}),
    "a loop of another kind": lambda raw: raw["loops"].update(fit_loop=[1]),
    "a count of text": of_loops("epoch_progress", completed="x"),
    "a count of nothing": of_loops("epoch_loop.manual_optimization.optim_step_progress", completed=None),
    "a count below nothing": of_loops("epoch_loop.batch_progress", ready=-5),
    "callbacks": lambda raw: raw.update(callbacks=3),
    "state of a callback": lambda raw: raw["callbacks"].update({key: [1] for key in raw["callbacks"]}),
    "a last checkpoint upwards": of_last_checkpoint(last_model_path="checkpoints/../../precious.txt"),
    "a last checkpoint elsewhere": of_last_checkpoint(last_model_path="s3://bucket/file"),
    "a last checkpoint of another kind": of_last_checkpoint(last_model_path=3),
    "best checkpoints of another kind": of_last_checkpoint(best_k_models={"x": "y"}),
    "the best checkpoint under an early key": lambda raw: raw.update(checkpoint_callback_best_model_path="../x"),
    "no optimizer": lambda raw: raw.update(optimizer_states=[]),
    "an optimizer of nothing": lambda raw: raw.update(optimizer_states=[{}]),
    "an optimizer of text": lambda raw: raw.update(optimizer_states=["adam"]),
    "schedules": lambda raw: raw.update(lr_schedulers={"a": 1}),
    "version": lambda raw: raw.update({"pytorch-lightning_version": "\x1b[2Jnot a version"}),
    "no version": lambda raw: raw.pop("pytorch-lightning_version"),
    "weights of other shapes": lambda raw: raw.update(state_dict={"x": torch.ones(2)}),
    "data": lambda raw: raw.update(OfflineDataModule=3),
    "settings": lambda raw: raw.update(hyper_parameters={"critic": [[[1]] * 9] * 9}),
}


@pytest.mark.parametrize("change", slow_after(5, STATES.values()), ids=STATES)
def test_continuing_from_states_of_another_kind_is_a_short_error(change: Change, whole: Path, tmp_path: Path) -> None:
    forged(whole, tmp_path, change)
    (tmp_path / "tiny.yaml").write_text(TINY)
    refused = call_tql(tmp_path, "fit", "--config", "tiny.yaml", DATA, "--ckpt_path=forged.ckpt", "--force=true")
    assert refused.returncode == 2, refused.stderr
    assert "checkpoint forged.ckpt" in refused.stderr
    assert len(refused.stderr) < 1500
    assert "\x1b" not in refused.stderr


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,2\n",
        "step,eval/return\ninf,1\n",
        "step,eval/return\n,1\n",
        f"step,eval/return\n{DIGITS},1\n",
        "step,eval/return\n1e300,1\n",
        f"step,eval/return\n1,{'1' * 200_000}\n",
        "step,eval/return\n1,2,3,4\n",
        "step,eval/return\n1\n",
        'step,"eval\n1,2\n',
    ],
)
def test_metrics_of_another_shape_are_a_short_error(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match="expected numbers by column and a column step, as tql fit writes") as refused:
        MetricsFile(str(run)).keep_until(5)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "settings",
    [
        f"trainer: {{max_steps: {DIGITS}}}",
        f"trainer: {{max_steps: '{DIGITS}'}}",
        f"trainer: {{max_steps: 200, log_every_n_steps: {DIGITS}}}",
        "trainer: {max_steps: '\u00b2'}",
        f"data: {{dataset: {{init_args: {{name: {DIGITS}}}}}}}",
        f"x: {DIGITS}",
        "x: 2001-01-01",
    ],
)
def test_a_report_is_written_whatever_the_numbers_of_a_configuration(settings: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(settings + "\n")
    assert write_report([run], tmp_path / "report.html").is_file()


@pytest.mark.parametrize("value", ["1e308", "-1e308", DIGITS, "1e999", "nan"])
def test_a_report_is_written_whatever_the_figures(value: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text(f"step,eval/return,train/td_loss\n0,{value},1\n1,1,{value}\n")
    assert write_report([run], tmp_path / "report.html").is_file()
    evaluation = run / "evaluations" / "update_000000000.json"
    content = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps(content | {"returns": [0]}).replace('"returns": [0]', f'"returns": [{DIGITS}]'))
    assert write_report([run], tmp_path / "report.html").is_file()


def test_a_link_to_itself_is_a_short_error(tmp_path: Path) -> None:
    for name in ("loop.ckpt", "loop.npz", "loop"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "tiny.yaml").write_text(TINY)
    for arguments in (
        ("evaluate", "loop.ckpt"),
        ("export", "loop.ckpt"),
        ("data", "inspect", "loop.npz"),
        ("report", "loop"),
        ("fit", "--config", "tiny.yaml", DATA, "--ckpt_path=loop.ckpt"),
        ("fit", "--config", "tiny.yaml", DATA, "--trainer.default_root_dir=loop"),
    ):
        refused = call_tql(tmp_path, *arguments)
        assert refused.returncode == 2, arguments
        assert len(refused.stderr) < 1000
