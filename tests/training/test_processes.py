"""Processes that share a batch train as one does, and hand runs on to each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.command_line import PATIENCE
from tests.two_processes import SignalAt, train, train_compiled, train_twice, train_variant
from tql_lightning.cli.main import main
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import evaluation_files
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.distributed import prefer_static_graph

CLOCKS = ("train/updates_per_second", "train/samples_per_second", "train/memory_gb")


def run_processes(*arguments: str, timeout: float = PATIENCE) -> str:
    """What those of `tests.two_processes` wrote to stderr."""
    command, root = [sys.executable, "-m", "tests.two_processes", *arguments], Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=timeout)
    assert finished.returncode == 0, finished.stderr[-5000:]
    return finished.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: by one process, by two (see `as_one_of_two`), and begun by one and ended by the other."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("processes")
    assert train(folder / "one_then_two", 1, SignalAt()).global_step == 7  # in the middle of a chunk
    (folder / "stderr").write_text(run_processes(str(folder)))
    train(folder / "one", 1)
    train(folder / "two_then_one", 1, continued=True)
    train_variant(folder / "one_variant", 1)
    train_twice(folder / "one_twice", 1)
    return folder


def numbers(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every number in nested mappings and sequences, by where it is."""
    if isinstance(value, dict):
        return {key: each for part in value for key, each in numbers(value[part], f"{name}/{part}").items()}
    if isinstance(value, list | tuple):
        return {key: each for i, part in enumerate(value) for key, each in numbers(part, f"{name}/{i}").items()}
    if isinstance(value, torch.Tensor):
        return {name: value}
    return {name: torch.tensor(value, dtype=torch.float64)} if isinstance(value, float | int) else {}


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """All that training changes: both critics, policy, temperatures, the optimizer's state and the schedule."""
    raw = read_checkpoint(folder / "last.ckpt")
    return numbers({name: raw[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")})


def logged(folder: Path) -> dict[str, torch.Tensor]:
    """Every metric at every update, but for those of clocks."""
    metrics = read_metrics(folder / "metrics.csv")
    return numbers({name: series for name, series in metrics.items() if name not in CLOCKS})


def evaluated(folder: Path) -> dict[int, Any]:
    return {update: json.loads(path.read_text()) for update, path in evaluation_files(folder).items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-9, of numbers above 1 relative; 1e-5 of episodes, whose environments see actions in float32."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        bound = 1e-5 if name.startswith("/eval/") else 1e-9
        difference = (found[name].double() - value.double()).abs() / value.double().abs().clamp(min=1.0)
        assert bool((difference <= bound).all()), f"{name}: off by up to {difference.max():.1e}"


@pytest.mark.slow
def test_two_processes_with_half_a_batch_each_train_as_one_with_all_of_it(runs: Path) -> None:
    expected = trained(runs / "one")
    assert any("target_critic" in name for name in expected)
    assert any("/temperature" in name for name in expected)
    assert_close(trained(runs / "two"), expected)


@pytest.mark.slow
def test_two_processes_log_the_metrics_of_the_whole_batch_once(runs: Path) -> None:
    expected = logged(runs / "one")
    kinds = ("train/q_min", "train/q_max", "train/gradient_norm/actor", "train/temperature/layer_0/value")
    for name in (*kinds, "val/td_loss", "val/q_min", "val/attention_entropy/layer_1/others", "eval/return"):
        assert f"/{name}/1/1" in expected, name
    assert_close(logged(runs / "two"), expected)
    assert runs.joinpath("stderr").read_text().count("16 transitions an update, 8 on each of 2 processes") == 9
    assert "sync_dist" not in runs.joinpath("stderr").read_text()  # Lightning's advice for what is not of all processes


@pytest.mark.slow
def test_two_processes_play_the_episodes_that_one_plays(runs: Path) -> None:
    expected = evaluated(runs / "one")
    assert list(expected) == [0, 10, 20]
    found = evaluated(runs / "two")
    assert {update: record["lengths"] for update, record in found.items()} == {
        update: record["lengths"] for update, record in expected.items()
    }
    for update, record in expected.items():
        assert found[update]["returns"] == pytest.approx(record["returns"], rel=1e-5)
    assert (runs / "two" / "best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["variant", "twice"])
def test_other_losses_moving_buffers_unused_parameters_and_a_second_fit_make_no_difference(
    kind: str, runs: Path
) -> None:
    assert_close(trained(runs / f"two_{kind}"), trained(runs / f"one_{kind}"))


@pytest.mark.slow
def test_ddp_takes_a_static_graph_and_searches_no_unused_parameters(runs: Path) -> None:
    for rank in (0, 1):
        seen = json.loads((runs / f"seen_{rank}.json").read_text())
        assert (seen["static"], seen["searches"]) == (True, False)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["one_then_two", "two_then_one"])
def test_a_run_may_be_continued_by_another_number_of_processes(run: str, runs: Path) -> None:
    assert_close(trained(runs / run), trained(runs / "one"))
    found = read_metrics(runs / run / "metrics.csv")
    assert found["train/q_mean"][0] == [5, 10, 15, 20]
    assert evaluated(runs / run).keys() == evaluated(runs / "one").keys()


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_continued_end_bit_for_bit_where_they_would_have(runs: Path) -> None:
    folders = runs / "two_then_two", runs / "two_float32"
    for what in (trained, logged):
        found, expected = (what(folder) for folder in folders)
        assert list(found) == list(expected)
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert evaluated(folders[0]) == evaluated(folders[1])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_one_checkpoint_and_the_first_tells_of_it(runs: Path) -> None:
    assert read_checkpoint(runs / "command" / "run" / "checkpoints" / "last.ckpt")["global_step"] == 10
    seen = [json.loads((runs / f"seen_{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["code"] for each in seen] == [143, 0]
    assert [each["stopped"] for each in seen] == [[10, 10], [10, 10]]
    said = (runs / "stderr").read_text()
    assert said.count("Stopped by SIGTERM after update 10: saved") == 2  # a run from Python and one of the command
    assert said.count("Stopped by SIGUSR1 after update 10: saved") == 1


@pytest.mark.slow
def test_a_process_that_another_has_left_alone_ends_with_a_line_and_its_checkpoint_stays(runs: Path) -> None:
    assert "tql: another process of this run has ended" in (runs / "stderr").read_text()
    assert read_checkpoint(runs / "left_alone" / "run" / "checkpoints" / "last.ckpt")["global_step"] == 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["eager", "inductor"])  # the second generates code, for minutes
def test_compiled_losses_take_the_mean_over_processes_too(backend: str, tmp_path: Path) -> None:
    run_processes(str(tmp_path), backend, timeout=1700)
    train_compiled(tmp_path / "one", 1)
    assert_close(trained(tmp_path / "two_compiled"), trained(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_processes_train_as_one_whole_or_in_shares_and_take_over_from_one_another(tmp_path: Path) -> None:
    assert train(tmp_path / "one_then_four", 1, SignalAt()).global_step == 7
    run_processes(str(tmp_path), "four", timeout=500)
    train(tmp_path / "four_then_one", 1, continued=True)
    train(tmp_path / "one", 1)
    for run in ("ddp", "sharded", "one_then_four", "four_then_one"):
        assert_close(trained(tmp_path / run), trained(tmp_path / "one"))
        assert evaluated(tmp_path / run).keys() == evaluated(tmp_path / "one").keys()
    for run in ("ddp", "sharded"):
        assert_close(logged(tmp_path / run), logged(tmp_path / "one"))


def test_what_is_set_for_ddp_stays() -> None:
    settings = {}
    for given in ({}, {"static_graph": False}, {"find_unused_parameters": True}, {"find_unused_parameters": False}):
        strategy = DDPStrategy(**given)
        prefer_static_graph(strategy)
        settings[str(given)] = strategy._ddp_kwargs
    assert list(settings.values()) == [
        {"static_graph": True},
        {"static_graph": False},
        {"find_unused_parameters": True},
        {"find_unused_parameters": False, "static_graph": True},
    ]


@pytest.mark.usefixtures("command_folder")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["--trainer.devices=2", "--trainer.strategy=ddp_spawn"], r"trainer\.strategy: .* found DDPStrategy by spawn"),
        (["--trainer.num_nodes=2"], r"trainer\.num_nodes: 2 machines .* torchrun or srun .* MASTER_ADDR"),
    ],
)
def test_processes_that_would_be_waited_for_in_vain_are_refused_before_anything_is_started(
    settings: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["fit", "--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", *settings]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not Path("run").exists()
