"""What the benchmarks measure, on functions whose answer is known."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks import data, gpu_tables, harness, memory, policy, success, trainer, update
from benchmarks.attention import main as attention_benchmark
from benchmarks.collapse import Run, over_seeds, summary_lines, tail
from benchmarks.harness import Peak, alternate, count_flops, peak_bytes
from tests.toy import toy_model
from tql_lightning.batch import at_update
from tql_lightning.benchmark.plan import Choice, plan_runs, write_plan
from tql_lightning.benchmark.suite import make_suite
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.nn.chunked_attention import BLOCK_ELEMENTS
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.run.folder import evaluation_file
from tql_lightning.training.execution import Execution


def test_the_tail_is_the_mean_of_the_last_tenth() -> None:
    assert tail({"x": (list(range(20)), [0.0] * 18 + [1.0, 3.0])}, "x") == 2.0


def test_a_study_of_several_seeds_is_summed_up_by_variant_width_and_control() -> None:
    figures = {"target": {}, "slope": 0.0, "roughness": 0.01, "q": -5.0, "return_stderr": 1.0, "updates": 9}
    measured = {
        Run("pendulum", 64, control, seed, 9, Path("runs")): figures
        | {"return": value, "entropy": {"layer_0/value": 1.0, "layer_1/value": value / 100}}
        for control, seed, value in [("none", 0, 10.0), ("none", 1, 14.0), ("damped", 0, 7.0)]
    }
    none = over_seeds(measured)["pendulum", "dense", 64, "none"]
    assert none["return"] == (12.0, pytest.approx(8.0**0.5), 2)
    assert none["mean entropy"][0] == pytest.approx(0.56)
    lines = summary_lines(over_seeds(measured))
    assert lines[2].startswith("| pendulum | dense | 64 | damped | 1 | 0.54 ± nan |")
    assert (
        lines[3]
        == "| pendulum | dense | 64 | none | 2 | 0.56 ± 0.01 | 0.12 ± 0.03 | 0.0100 ± 0.0000 | -5 ± 0 | 12 ± 3 |"
    )


def test_short_variants_are_called_often_in_a_timing() -> None:
    calls: list[str] = []
    readings = iter([0.0, 3.0, 10.0, 12.0])
    variants = {"short": lambda: calls.append("short"), "long": lambda: calls.append("long")}
    comparison = alternate(variants, rounds=1, warmup=0, calls={"short": 3}, clock=lambda: next(readings))
    assert calls == ["short", "short", "short", "long"]
    assert comparison.seconds == {"short": [1.0], "long": [2.0]}


def test_variants_are_alternated_in_turning_order_and_compared_round_by_round() -> None:
    calls: list[str] = []
    readings = iter([0.0, 1.0, 10.0, 12.0, 20.0, 28.0, 30.0, 32.0])
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    comparison = alternate(variants, rounds=2, warmup=1, clock=lambda: next(readings))
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert comparison.seconds == {"a": [1.0, 2.0], "b": [2.0, 8.0]}
    assert comparison.ratio("a", "b") == pytest.approx((0.5 + 0.25) / 2)
    assert comparison.median("b") == 5.0
    assert comparison.spread("b") == 3.0


def test_where_nobody_may_look_at_a_device_no_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may forbid profiles; what was timed before is told all the same."""
    monkeypatch.setattr(harness, "profile", lambda **_: nullcontext(SimpleNamespace(key_averages=list)))
    assert harness.shares_of_time(lambda: None, "cpu") == {}


def test_flops_are_counted_forward_and_backward() -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    inputs = torch.randn(3, 5, requires_grad=True)
    assert count_flops(lambda: (inputs @ weight).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_a_matrix_product_reaches_its_own_peak() -> None:
    peak = Peak(size=64)
    comparison = alternate({"same": peak.variants["peak"], **peak.variants}, clock=iter(range(100)).__next__)
    assert peak.fields(comparison, "same", flops=2.0 * 64**3)["same_share_of_peak"] == 1.0


TINY = ("--hidden-dim=32", "--batch=4", "--observation-dim=3", "--action-dim=1", "--policy-dim=8", "--json")


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one line of JSON that a benchmark printed."""
    (line,) = capsys.readouterr().out.splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_the_update_is_timed_against_the_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    update.main([*TINY, "--rounds=1", "--warmup=0", "--profile"])
    fields = printed(capsys)
    shares = fields["shares_of_time"]
    assert 0.0 < sum(shares.values()) <= 1.001
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert fields["device"] == "cpu"
    assert fields["hidden_dim"] == 32
    assert fields["largest_gradient_difference"] <= update.TOLERANCE
    assert fields["ours_updates_per_s"] == pytest.approx(1.0 / fields["ours_s"])
    assert fields["ours_flop_per_s"] == pytest.approx(fields["flops"] / fields["ours_s"])
    assert fields["ratio"] == pytest.approx(fields["ours_s"] / fields["plain_s"])
    assert fields["ours_share_of_peak"] == pytest.approx(fields["ours_flop_per_s"] / fields["peak_flop_per_s"])
    assert fields["flops"] < 0.6 * fields["plain_flops"]


def options(*arguments: str) -> argparse.Namespace:
    return update.update_parser("").parse_args([*TINY, *arguments])


def test_other_losses_or_gradients_than_the_plain_ones_stop_the_benchmark() -> None:
    problem = update.Problem(options())
    problem.check_equal()
    with torch.no_grad():
        problem.plain.critic.transformer.blocks[0].attention.out.weight[0, 0] += 0.1
    with pytest.raises(AssertionError, match="loss: ours"):
        problem.check_equal()

    problem = update.Problem(options())
    problem.plain.critic.heads[0][0].weight.register_hook(lambda gradient: 1.001 * gradient)
    with pytest.raises(AssertionError, match=r"gradient of critic\.heads\.0\.0\.weight differs by 0\.001"):
        problem.check_equal()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_other_precisions_are_timed_too(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_float32_matmul_precision()
    update.main([*TINY, "--rounds=1", "--warmup=0", f"--precision={precision}"])
    assert printed(capsys)["precision"] == precision
    assert torch.get_float32_matmul_precision() == before


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also on a machine that has one
    with pytest.raises(SystemExit, match="--device cuda: torch sees no CUDA device"):
        update.main(["--device=cuda"])
    with pytest.raises(SystemExit, match="--cuda-graphs: expected --device cuda, found cpu"):
        update.main(["--cuda-graphs"])


def test_every_command_for_a_gpu_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of benchmarks/gpu.sh, with a Python that only says how it was called."""
    python = tmp_path / "python"
    fails = f'case "$*" in *benchmarks.data*) [ ! -e {tmp_path}/mended ] && {{ sleep 20 & exit 3; }} ;; esac'
    python.write_text(f"#!/bin/sh\n{fails}\nprintf '%s\\n' \"$*\"\necho '{{\"done\": 1}}'\n")
    python.chmod(0o755)
    root = Path(__file__).parents[1]
    command = ["bash", str(root / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    settings = {"env": os.environ | {"PYTHON": str(python)}, "capture_output": True, "text": True}
    subprocess.run(command, check=True, timeout=15, **settings)  # the step that fails leaves a process behind
    (tmp_path / "mended").touch()
    again = subprocess.run([*command, "trainer"], check=True, **settings).stdout.splitlines()
    assert again[-2] == f"-m benchmarks.gpu_tables {tmp_path}/out"
    assert [line.endswith(": there already") for line in again[:4]] == [True, True, True, False]
    steps = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    failed = steps.pop(-2)
    assert (failed["step"], failed["code"], failed["result"]) == ("data", 3, None)
    assert len({step["step"] for step in steps}) == len(steps) > 40
    assert all(step["code"] == 0 and step["result"] == {"done": 1} for step in steps)
    lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
    assert {line.split()[1] for line in lines if line.startswith("-m ")} >= {"pytest", "benchmarks.update"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # options are read, and nothing runs
    for_cuda = [line for line in lines if line.startswith("-m benchmarks.") and "cuda" in line]
    assert len(for_cuda) > 30
    for line in for_cuda:
        module = importlib.import_module(line.split()[1])
        monkeypatch.setattr("sys.argv", ["benchmark", *shlex.split(line)[2:]])
        with pytest.raises(SystemExit, match="torch sees no CUDA device"):
            module.main()


def test_the_tables_of_a_gpu_tell_what_failed_what_was_reached_and_every_figure() -> None:
    figures = dict.fromkeys(("ours_spread_s", "plain_s", "ratio", "ratio_spread", "ours_flop_per_s"), 0.5)
    updates: dict[str, Any] = {
        "update 128 bfloat16 captured": {"hidden_dim": 128, "precision": "bfloat16", "ours_s": 4e-4},
        "update 128 tf32 captured": {"hidden_dim": 128, "precision": "tf32", "ours_s": 5e-4},
        "update 1024 bfloat16 eager": {"hidden_dim": 1024, "precision": "bfloat16", "ours_s": 1e-2},
    }
    steps = {"update 1024 tf32 eager": {"code": 124, "result": None}}
    for number, (name, fields) in enumerate(updates.items()):
        fields |= {"machine": "H100", "shares_of_time": {"gemm": 0.75}, "ours_share_of_peak": number / 4}
        steps[name] = {"code": 0, "result": figures | fields | {"ours_updates_per_s": 1 / fields["ours_s"]}}
    steps["memory"] = {"code": 0, "result": {"ours_mib_128": 12.345678, "machine": "H100"}}
    text = "\n".join(gpu_tables.tables(steps))
    assert text.startswith("Machine: H100.\nFailed: update 1024 tf32 eager (exit code 124).\n")
    assert "| 128 bfloat16 captured | 0.400 (500.000) | 500.000 | 0.500 (0.500) | 2,500 | 0.0 | 0.00 |" in text
    assert "| at 1024 half of bfloat16's peak | 0.50 |" in text
    assert "| at 128 2,000 updates a second | 2,500 |" in text
    assert "| at 128 bfloat16 no slower than TF32 | 0.80 of its time |" in text
    assert "| 1024 bfloat16 eager: `gemm` | 75.0% |" in text
    assert "| ours_mib_128 | 12.35 |" in text


def test_the_trivial_update_is_compiled_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # generating code takes minutes
    totals = []
    for compiled in (False, True):
        torch.manual_seed(0)
        tiny = partial(MLPCritic, hidden_dims=(1,))
        model = trainer.TrivialTQL(1, 1, critic=tiny, execution=Execution(compile=compiled))
        sampler = trainer.TransitionSampler(trainer.random_dataset(1, 1), 4, 0, spec=model.update_spec)
        batch, noise = (at_update(part, 0) for part in sampler.chunk(0, 1))
        totals.append(update.runner_without_trainer(model).losses(batch, noise, {}, with_metrics=True).total)
    assert torch.equal(*totals)


def test_lightnings_cost_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.PEAK_SIZES, "cpu", 64)
    trainer.main([*TINY, "--rounds=1", "--warmup=1", "--chunk=2", "--trivial-chunks=1", "--precision=bfloat16"])
    fields = printed(capsys)
    assert fields["trainer_share_of_peak"] == pytest.approx(fields["trainer_flop_per_s"] / fields["peak_flop_per_s"])
    assert fields["flops"] == count_flops(update.Problem(options()).ours)
    assert fields["precision"] == "bfloat16"
    assert fields["overhead"] == pytest.approx(fields["trainer_s"] / fields["bare_s"] - 1.0)
    assert fields["trivial_overhead_us"] == pytest.approx(fields["trivial_trainer_us"] - fields["trivial_bare_us"])


def trainer_options() -> argparse.Namespace:
    return argparse.Namespace(**vars(options("--batch=8", "--warmup=0")) | {"chunk": 2})


def test_the_bare_loop_makes_the_trainers_updates(tmp_path: Path) -> None:
    dataset = trainer.random_dataset(3, 1)
    twin, model = toy_model(), toy_model()
    against = trainer.AgainstBareLoop(twin, dataset, trainer_options())
    loop = Trainer(
        max_steps=6,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[against],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loop.fit(model, datamodule=OfflineDataModule(dataset, batch_size=8, updates_per_step=2))
    assert against.updates == 6
    assert all(torch.equal(one, other) for one, other in zip(twin.parameters(), model.parameters(), strict=True))


def test_memory_of_an_update_grows_with_the_critic(capfd: pytest.CaptureFixture[str]) -> None:
    memory.main([*TINY, "--sizes", "32", "64"])
    fields = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert fields["ours_spread_mib_64"] < 0.05 * fields["ours_mib_64"]
    # float32: weights and two moments of each parameter; the target's weights.
    numbers = 3 * fields["parameters_64"] + fields["target_parameters_64"]
    assert fields["held_mib_64"] * 2**20 / 4 == pytest.approx(numbers, rel=0.05)
    assert 0.0 < fields["ours_mib_32"] < fields["ours_mib_64"]


def data_options(**changes: Any) -> argparse.Namespace:
    options = {"transitions": 2000, "device": "cpu", "updates_per_step": 2, "storage": "auto", "n_step": 2}
    return argparse.Namespace(**options | {"action_chunk": 2, "rounds": 1, "warmup": 1} | changes)


def test_every_source_is_compared_with_a_plain_dataloader_and_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BATCH": 64, "CHUNKS": 2, "HIDDEN": 32}.items():
        monkeypatch.setattr(data, name, value)
    result = data.compare(data_options(rounds=7), tmp_path)  # the median of one round strays to less than half
    for name in ("memory", "mapped", "n_step", "action_chunk"):
        assert result[f"{name}_times_dataloader"] > 2.0
        assert 0.0 < result[f"{name}_and_noise_share_of_update"] < 0.2  # of an update far smaller than the real one
    assert result["dataloader_times_dataloader"] == 1.0
    assert 0.0 < result["update_share_of_peak"] < 1.0


@pytest.mark.slow
def test_files_larger_than_the_memory_that_may_be_allocated_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "FILE_GIGABYTES", 1.5)
    result = data.larger_than_memory(0.6, tmp_path, 10)
    assert 1.4 < result["file_gb"] < 1.6
    assert max(result["cached_anonymous_mb"], result["uncached_anonymous_mb"]) < 600
    assert result["cached_peak_resident_mb"] < 1000
    assert "Unable to allocate" in result["read_into_memory"]


def test_the_weight_of_attention_is_found_and_grows_with_tokens_as_the_implementation_promises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 256)
    sizes = ["--heads", "2", "--head-dim", "4", "--time-tokens", "5", "--memory-tokens", "64", "128", "--rounds", "1"]
    attention_benchmark([*sizes, "--elements", "100", "--json"], peak_size=16)
    fields = json.loads(capsys.readouterr().out)
    assert fields["chunked_ratio/5"] == pytest.approx(fields["chunked_s/5"] / fields["plain_s/5"])
    assert fields["flops/5"] == 6 * 2 * (100 // 25) * 2 * 5**2 * 4  # six products of n x e x n, two of them forward
    achieved, peak = fields["chunked_flop_per_s/5"], fields["peak_flop_per_s/5"]
    assert fields["chunked_share_of_peak/5"] == pytest.approx(achieved / peak)
    assert fields["plain_mib/128"] / fields["plain_mib/64"] > 3.5
    assert fields["chunked_mib/128"] / fields["chunked_mib/64"] <= 2.0  # linear, and one block that does not grow


def test_the_peak_is_the_most_that_is_held_at_once() -> None:
    def call() -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(750)
        del second, third

    assert peak_bytes(call, "cpu") == 4 * 1250


def test_a_success_curve_is_the_share_over_all_seeds_where_each_was_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = {"config": "ogbench/scene", "tasks": [4]}
    suite = make_suite("mine", {"metric": "success_rate", "domains": {"scene": domain}, "methods": {"tql": {}}})
    runs = plan_runs(suite, Choice(seeds=[0, 1, 2]), packaged_configs())
    write_plan(tmp_path, suite, runs)
    for run, outcomes in zip(runs, ({0: [0, 0], 50: [1, 1]}, {0: [1, 0], 50: [1, 0], 60: [1, 1]}), strict=False):
        for at, successes in outcomes.items():
            file = evaluation_file(tmp_path / run.folder, at)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"successes": successes}))
    assert success.benchmark_curves(tmp_path) == {"scene/task_4": {"tql": (2, {0: (1, 4), 50: (3, 4)})}}
    picture = tmp_path / "success.png"
    monkeypatch.setattr("sys.argv", ["success", str(tmp_path), "--output", str(picture)])
    success.main()
    assert "| scene/task_4 | tql | 2 | 50 | 75 % [19, 99] |" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # writes ONNX
def test_every_form_of_a_policy_is_timed_and_acts_alike(tmp_path: Path) -> None:
    calls = policy.variants(toy_model(), tmp_path, "fql")
    assert list(calls) == ["eager", "torch", "onnx", "session"]
    actions = [np.asarray(call()).reshape(1) for call in calls.values()]
    np.testing.assert_allclose(actions, [actions[0]] * 4, atol=1e-5)
