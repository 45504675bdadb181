"""Lightning's own callbacks on a run of 60 updates."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from tests import environments  # noqa: F401  (registers)
from tests.command_line import TINY, call_tql
from tests.toy import fit, toy_model
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.periodic import PeriodicObserver
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.run.folder import ATTENTION_MAP, evaluation_files, picture_files

SWING, TOY = "tests.environments:Swing-v0", "tests.environments:Toy-v0"
TENS = ["10", "20", "30", "40", "50", "60"]
IGNORED = pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`", "ignore:You're using the Weight")


def evaluation(every: int = 10, env_id: str = SWING, **settings: Any) -> RolloutEvaluation:
    return RolloutEvaluation(1, every, num_envs=1, env_id=env_id, **settings)


def train(folder: Path, *callbacks: Callback, updates: int = 60, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {"updates_per_step": 1, "log_every_n_steps": 10}
    return fit(folder, toy_model(), updates, list(callbacks), **(defaults | settings))


class Logs(Callback):
    """Logs as Lightning's documentation shows."""

    trainer: Any = None  # of the last run

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:  # type: ignore[no-untyped-def]
        Logs.trainer = trainer
        pl_module.log("user/update", float(trainer.global_step))


class Observes(PeriodicObserver):
    """Logs a metric as the package's own observers do."""

    def observe(self, trainer: Trainer, model: Any) -> dict[str, float]:
        return {"train/observed": float(trainer.global_step)}


def batch_rows(batch: Any) -> int:
    return int(batch[0][0].shape[1])


class CountingCPU(CPUAccelerator):
    """Reports statistics without psutil."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {"percent": 1.0}


class Finetuning(BaseFinetuning):
    """Freezes nothing."""

    def freeze_before_training(self, pl_module: Any) -> None: ...

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None: ...


@dataclass
class Run:
    folder: Path
    rows: list[dict[str, str]]
    callbacks: dict[str, Any]
    trainer: Trainer

    def updates(self, key: str) -> list[str]:
        return [row["step"] for row in self.rows if row.get(key)]

    def saved(self, name: str) -> list[int]:
        return sorted(int(path.stem.partition("=")[2]) for path in (self.folder / name).glob("*.ckpt"))


# The same callbacks as in `run`, as `tql fit` is given them.
CONFIGURED = """
trainer:
  accelerator: {class_path: tests.training.test_stock_callbacks.CountingCPU}
  max_steps: 60
  log_every_n_steps: 10
  val_check_interval: 15
  num_sanity_val_steps: 0
  enable_progress_bar: false
  callbacks:
    - class_path: tests.training.test_stock_callbacks.Logs
    - class_path: RolloutEvaluation
      init_args: {episodes: 1, every_n_updates: 20, num_envs: 1, env_id: "tests.environments:Swing-v0"}
    - class_path: LearningRateMonitor
      init_args: {log_weight_decay: true}
    - class_path: DeviceStatsMonitor
      init_args: {cpu_stats: true}
    - class_path: ThroughputMonitor
      init_args: {batch_size_fn: tests.training.test_stock_callbacks.batch_rows, window_size: 5}
    - class_path: ModelCheckpoint
      init_args: {dirpath: run/return, monitor: eval/return, mode: max, filename: "{step}", save_top_k: -1}
    - class_path: ModelCheckpoint
      init_args:
        {dirpath: run/loss, monitor: train/td_loss, every_n_train_steps: 15, filename: "{step}", save_top_k: -1}
    - class_path: ModelCheckpoint
      init_args: {dirpath: run/fifteen, every_n_train_steps: 15, filename: "{step}", save_top_k: -1}
    - class_path: ModelCheckpoint
      init_args: {dirpath: run/time, train_time_interval: "0:00:00", filename: "{step}", save_top_k: -1}
    - class_path: QLandscape
      init_args: {every_n_updates: 30}
    - class_path: EarlyStopping
      init_args: {monitor: eval/return, mode: max, patience: 99}
"""


@pytest.fixture(scope="module", params=["Trainer", pytest.param("tql fit", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with everything that only writes something down."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    make = train_with_all if request.param == "Trainer" else fit_with_all
    with pytest.warns(UserWarning, match="you need to define a `flops_per_batch`"):
        trainer = make(folder)
    folder = next(folder.rglob("metrics.csv")).parent
    saving = {Path(each.dirpath).name: each for each in trainer.checkpoint_callbacks}
    patient = next(each for each in trainer.callbacks if isinstance(each, EarlyStopping))
    with (folder / "metrics.csv").open(newline="") as file:
        return Run(folder, list(csv.DictReader(file)), {"patient": patient} | saving, trainer)


def fit_with_all(folder: Path) -> Trainer:
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "all.yaml").write_text(CONFIGURED)
    files = ("--config", "tiny.yaml", "--config", "all.yaml")
    fitted = call_tql(folder, "fit", *files, "--data.dataset=tests.toy.toy_dataset")
    assert fitted.returncode == 0, fitted.stderr
    trainer: Trainer = Logs.trainer
    return trainer


def train_with_all(folder: Path) -> Trainer:
    every: dict[str, Any] = {"filename": "{step}", "save_top_k": -1}
    callbacks: list[Callback] = [
        Logs(),
        evaluation(20),
        LearningRateMonitor(log_weight_decay=True),
        DeviceStatsMonitor(cpu_stats=True),
        ThroughputMonitor(batch_size_fn=batch_rows, window_size=5),
        ModelCheckpoint(folder / "return", monitor="eval/return", mode="max", **every),
        ModelCheckpoint(folder / "loss", monitor="train/td_loss", every_n_train_steps=15, **every),
        ModelCheckpoint(folder / "fifteen", every_n_train_steps=15, **every),
        ModelCheckpoint(folder / "time", train_time_interval=timedelta(seconds=0), **every),
        Observes(30),
        EarlyStopping("eval/return", mode="max", patience=99),
    ]
    logger = CSVLogger(folder, name="", version="")
    settings = {"logger": logger, "accelerator": CountingCPU(), "val_check_interval": 15}
    return train(folder, *callbacks, **settings)


@pytest.mark.parametrize(
    "key",
    [
        "user/update",
        "learning_rate/critic",
        "learning_rate/actor_no_decay-weight_decay",
        "DeviceStatsMonitor.on_train_batch_start/percent",
        "DeviceStatsMonitor.on_train_batch_end/percent",
        "train/device/samples_per_sec",
    ],
)
def test_rows_are_written_at_the_logged_updates(key: str, run: Run) -> None:
    assert run.updates(key) == TENS


def test_metrics_are_also_logged_where_a_checkpoint_needs_them(run: Run) -> None:
    assert run.updates("train/td_loss") == sorted({*TENS, "15", "30", "45", "60"}, key=int)


def test_values_logged_by_a_callback_belong_to_their_row(run: Run) -> None:
    rows = [row for row in run.rows if row.get("user/update")]
    assert rows
    assert [float(row["user/update"]) for row in rows] == [float(row["step"]) for row in rows]


def test_validation_is_made_at_multiples_of_its_interval_in_updates(run: Run) -> None:
    assert run.updates("val/td_loss") == ["15", "30", "45", "60"]


def test_names_hold_no_class_of_the_inside(run: Run) -> None:
    assert not any("Replayed" in name for name in run.rows[0])


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("return", [20, 40, 60]),
        ("loss", [15, 30, 45, 60]),
        ("fifteen", [15, 30, 45, 60]),
        ("time", list(range(1, 61))),
    ],
)
def test_a_checkpoint_is_written_where_its_setting_says(name: str, updates: list[int], run: Run) -> None:
    assert run.saved(name) == updates


def test_a_checkpoint_is_kept_under_the_return_of_its_own_weights(run: Run) -> None:
    scores = {Path(path).stem: float(score) for path, score in run.callbacks["return"].best_k_models.items()}
    logged = {f"step={row['step']}": float(row["eval/return"]) for row in run.rows if row.get("eval/return")}
    assert scores == pytest.approx({name: logged[name] for name in scores})


def test_all_metrics_are_known_to_callbacks(run: Run) -> None:
    logged = {name for name in run.rows[0] if name.startswith(("train/", "eval/", "val/")) and "device" not in name}
    missing = logged - set(run.trainer.callback_metrics)
    assert {name for name in missing if not name.startswith("train/") or "per_sec" not in name} <= {
        "train/time",
        "train/batches",
        "train/samples",
    }


def test_a_metric_counts_once_and_not_at_every_validation(run: Run) -> None:
    returns = [float(row["eval/return"]) for row in run.rows if row.get("eval/return")]
    best = returns.index(max(returns))
    assert run.callbacks["patient"].wait_count == len(returns) - 1 - best


@pytest.mark.parametrize(("monitor", "update"), [("eval/return", 20), ("train/td_loss", 30)])
def test_early_stopping_counts_each_logged_value_and_the_run_is_evaluated_at_its_end(
    monitor: str, update: int, tmp_path: Path
) -> None:
    stopping = EarlyStopping(monitor, mode="max", patience=2, min_delta=1e9)
    pictures = AttentionMap(25)  # comes before the evaluation that ends the run
    trainer = train(tmp_path, pictures, evaluation(20 if "train" in monitor else 10), stopping)
    assert trainer.global_step == update
    assert max(evaluation_files(tmp_path)) == update
    assert max(picture_files(tmp_path, ATTENTION_MAP)) == update


@pytest.mark.parametrize(
    ("updates", "settings"),
    [(7, {"limit_train_batches": 7, "max_epochs": 1}), (None, {"max_time": timedelta(seconds=0.01)})],
    ids=["max_epochs", "max_time"],
)
def test_a_run_without_a_last_update_is_evaluated_at_its_end(
    updates: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    from tests.toy import toy_dataset
    from tql_lightning.data.datamodule import OfflineDataModule

    trainer = Trainer(
        **({"max_epochs": -1} | settings),
        callbacks=[evaluation(20)],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(toy_model(), datamodule=OfflineDataModule(toy_dataset(), batch_size=16))
    assert updates in (None, trainer.global_step)
    assert list(evaluation_files(tmp_path)) == [0, trainer.global_step]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: EarlyStopping("eval/retrun"), "did you mean eval/return"),
        (lambda: ModelCheckpoint(monitor="val_loss"), "val/: action_error"),
        (lambda: EarlyStopping("eval/success_rate"), "eval/return_stderr, "),
        (lambda: BestCheckpoint(monitor="train/q_slope"), "leave BestCheckpoint out"),
        (lambda: ModelCheckpoint(monitor="eval/return", every_n_train_steps=15), "a multiple of RolloutEval.*=10"),
        (
            lambda: ModelCheckpoint(monitor="eval/return", train_time_interval=timedelta(seconds=1)),
            "train_time_interval: expected none",
        ),
    ],
)
def test_what_cannot_be_monitored_is_refused_before_the_first_update(
    callback: Callable[[], Callback], message: str, tmp_path: Path
) -> None:
    begun: list[int] = []

    class Counts(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            begun.append(1)

    with pytest.raises(ValueError, match=message):
        train(tmp_path, evaluation(), callback(), Counts())
    assert not begun


def test_what_a_users_callback_logs_can_be_monitored(tmp_path: Path) -> None:
    stopping = EarlyStopping("user/update", mode="max", check_on_train_epoch_end=False)
    train(tmp_path, Logs(), stopping, updates=10, val_check_interval=5)
    assert float(stopping.best_score) == 10.0


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: GradientAccumulationScheduler({0: 2}), "set data.batch_size"),
        (BatchSizeFinder, "set data.batch_size"),
        (LearningRateFinder, "set model.optimisation.learning_rate"),
        (lambda: StochasticWeightAveraging(1e-3), "use EMAWeightAveraging"),
        (Finetuning, "requires_grad_"),
        (lambda: ModelPruning("l1_unstructured", amount=0.1), "prune an exported policy"),
        (BasePredictionWriter, "there is no `predict`"),
        (SpikeDetection, "cannot be continued"),
        (lambda: Timer(timedelta(seconds=1), interval="epoch"), "Timer.interval: expected step, found epoch"),
        (lambda: ModelCheckpoint(every_n_epochs=2), "ModelCheckpoint.every_n_epochs: expected 1, found 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    callback: Callable[[], Callback], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, callback())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overfit_batches": 1}, "trainer.overfit_batches: expected 0"),
        ({"limit_train_batches": 0.5}, "trainer.limit_train_batches: expected a whole number"),
        ({"val_check_interval": 0.5}, "trainer.val_check_interval: expected a whole number"),
        ({"val_check_interval": timedelta(seconds=1)}, "trainer.val_check_interval: expected a whole number"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches: expected at least 1, found 0"),
        ({"check_val_every_n_epoch": 5}, "trainer.check_val_every_n_epoch: expected 1, found 5"),
    ],
)
def test_what_a_run_of_one_epoch_cannot_do_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **settings)


def test_limit_train_batches_makes_epochs_of_so_many_updates(tmp_path: Path) -> None:
    trainer = train(tmp_path, updates=6, limit_train_batches=2)
    assert (trainer.global_step, trainer.current_epoch) == (6, 3)


@IGNORED
def test_averaged_weights_are_evaluated_saved_and_continued(tmp_path: Path) -> None:
    def parts(folder: Path) -> list[Callback]:
        return [evaluation(10), EMAWeightAveraging(decay=0.9), LastCheckpoint(str(folder), every_n_updates=10)]

    whole, part = toy_model(), toy_model()
    fit(tmp_path / "whole", whole, 20, parts(tmp_path / "whole"), updates_per_step=1)
    last = tmp_path / "part" / "last.ckpt"
    stopped = fit(tmp_path / "part", part, 13, parts(last.parent), updates_per_step=1)
    saved = torch.load(last, weights_only=True)
    assert any(not torch.equal(one, saved["current_model_state"][name]) for name, one in saved["state_dict"].items())
    assert all(torch.equal(one, saved["state_dict"][name]) for name, one in part.state_dict().items())
    expected = rollout(part.eval().actor(), SWING, 1, seed=0).summary()["return"]
    assert float(stopped.callback_metrics["eval/return"]) == pytest.approx(expected, rel=1e-5)
    continued = toy_model()
    fit(tmp_path / "part", continued, 20, parts(last.parent), last, updates_per_step=1)
    assert all(torch.equal(one, whole.state_dict()[name]) for name, one in continued.state_dict().items())


@IGNORED
def test_averaging_that_misses_updates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="updates_per_step: expected 1 with EMAWeightAveraging"):
        train(tmp_path, EMAWeightAveraging(), updates_per_step=5)


def test_timer_ends_a_run_that_is_then_saved(tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path))
    trainer = train(tmp_path, Timer(timedelta(seconds=0.01)), last, updates=1000)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == trainer.global_step < 1000


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_progress_bars_count_to_the_last_update(bar: type[Any], tmp_path: Path) -> None:
    shown: list[tuple[Any, Any]] = []

    class Looks(Callback):
        def on_train_end(self, trainer: Any, *_: Any) -> None:
            task = trainer.progress_bar_callback.train_progress_bar
            shown.append((task.n, task.total) if bar is TQDMProgressBar else (task.completed, task.total))

    last = LastCheckpoint(str(tmp_path), every_n_updates=1)
    train(tmp_path, Looks(), bar(), last, updates=3, enable_progress_bar=True)
    train(tmp_path, Looks(), bar(), last, updates=5, enable_progress_bar=True, ckpt_path=tmp_path / "last.ckpt")
    train(tmp_path, Looks(), bar(), updates=5, enable_progress_bar=True, updates_per_step=2)
    train(tmp_path, Looks(), bar(), updates=5, enable_progress_bar=True, limit_train_batches=3)
    assert shown == [(3, 3), (5, 5), (3, 3), (2, 2)]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_end", "on_train_epoch_end", "on_validation_end"])
def test_hooks_of_an_object_alone_run_and_stay(hook: str, tmp_path: Path) -> None:
    seen: list[int] = []
    callback = LambdaCallback(**{hook: lambda trainer, *_: seen.append(trainer.global_step)})
    for runs in (1, 2):
        train(tmp_path, callback, updates=3, val_check_interval=3)
        assert seen == [*([1, 2, 3] if hook == "on_train_batch_end" else [3])] * runs


@IGNORED
def test_the_plain_average_holds_every_update_and_a_summary_names_the_networks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[torch.Tensor] = []
    model = toy_model()
    keeps = LambdaCallback(on_train_batch_end=lambda *_: seen.append(next(model.critic.parameters()).detach().clone()))
    first = next(model.critic.parameters()).detach().clone()
    parts: list[Callback] = [keeps, WeightAveraging(), ModelSummary(max_depth=2), evaluation(3)]
    with caplog.at_level("INFO"):
        trainer = fit(tmp_path, model, 3, parts, updates_per_step=1)
    torch.testing.assert_close(next(model.critic.parameters()).detach(), torch.stack(seen).mean(0), atol=1e-6, rtol=0)
    assert not torch.equal(first, seen[0])
    expected = rollout(model.eval().actor(), SWING, 1, seed=0).summary()["return"]
    assert float(trainer.callback_metrics["eval/return"]) == pytest.approx(expected, rel=1e-5)
    assert "critic.transformer" in caplog.text


ANEW = (
    pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model"),
    pytest.mark.filterwarnings("ignore:.*no checkpoint"),
)


def leave_a_checkpoint(folder: Path) -> tuple[Path, OnExceptionCheckpoint]:
    """What a fault of the user's callback at update 4 leaves."""

    def fail(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("a fault of the user's callback")

    saves = OnExceptionCheckpoint(str(folder), "at_fault")
    with pytest.raises(RuntimeError, match="of the user's callback"):
        train(folder, LambdaCallback(on_train_batch_start=fail), saves)
    return folder / "at_fault.ckpt", saves


@ANEW[0]
@ANEW[1]
def test_an_exception_leaves_a_checkpoint_of_the_update_before_it(tmp_path: Path) -> None:
    left, _ = leave_a_checkpoint(tmp_path)
    assert torch.load(left, weights_only=True)["global_step"] == 4


@ANEW[0]
@ANEW[1]
def test_what_an_exception_left_outlives_a_refused_run_and_a_development_run(tmp_path: Path) -> None:
    left, saves = leave_a_checkpoint(tmp_path)
    content = left.read_bytes()
    with pytest.raises(ValueError, match="expected a metric that this run logs"):
        train(tmp_path, saves, EarlyStopping("eval/retrun"), evaluation(), ckpt_path=left)
    train(tmp_path, saves, fast_dev_run=2, ckpt_path=left)
    assert left.read_bytes() == content


def test_a_development_run_writes_nothing(tmp_path: Path) -> None:
    callbacks = [evaluation(), AttentionMap(), QLandscape(), LastCheckpoint(str(tmp_path / "last"))]
    trainer = train(tmp_path, *callbacks, BestCheckpoint(str(tmp_path / "best")), fast_dev_run=3)
    assert trainer.global_step == 3
    assert "eval/return" in trainer.callback_metrics
    assert list(tmp_path.rglob("*")) == []
