"""The harness of every benchmark: warms up, alternates what it compares, tells median, spread and ratio.

    variants = {"ours": ours, "plain": plain, **peak.variants}
    comparison = alternate(variants, device, rounds=10)
    comparison.ratio("ours", "plain")

Machines are shared and clocks drift, so that a single time says little. Every round calls every variant, in an
order that turns from round to round, and the ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

PEAK_SIZES = {"cpu": 1536, "cuda": 8192}  # of the square matrices whose product is taken as the device's peak
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
CALLS = {"cpu": 1, "cuda": 10}  # in one timing: a GPU is fed without waiting in between, as in training
PEAK = "peak"


@dataclass(frozen=True)
class Comparison:
    """What alternated runs took.

    Attributes:
        seconds: of one call of each variant, one entry a round.
    """

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Interquartile range of the seconds of a call."""
        return interquartile_range(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        """Time of one variant over that of another, round by round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of the time of one variant over that of another."""
        return statistics.median(self.ratios(name, to))

    def ratio_spread(self, name: str, to: str) -> float:
        """Interquartile range of the ratios."""
        return interquartile_range(self.ratios(name, to))

    def fields(self, name: str) -> dict[str, float]:
        """Median and spread as a benchmark's JSON names them."""
        return {f"{name}_s": self.median(name), f"{name}_spread_s": self.spread(name)}


def alternate(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device | str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    calls: int | Mapping[str, int] = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Times variants against each other.

    Args:
        variants: name -> what is timed.
        device: CUDA is waited for before each reading of the clock.
        rounds: how often every variant is timed; the order turns by one variant each round.
        warmup: calls of every variant before anything is timed.
        calls: calls in one timing, for variants too short for the clock; by name, of those that are named.
        clock: ``time.process_time`` leaves out what other programs do with the cores; only for work that is done
            on the CPU by this process.
    """
    for call in variants.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            number = calls if isinstance(calls, int) else calls.get(name, 1)
            synchronize(device)
            start = clock()
            for _ in range(number):
                variants[name]()
            synchronize(device)
            seconds[name].append((clock() - start) / number)
    return Comparison(seconds)


@dataclass
class Peak:
    """The device's peak: a large matrix product, alternated with what is compared to it.

    Args:
        device: where.
        precision: of the matrices, one of `PRECISIONS`.
        size: of the square matrices; None for one that fills the device.
    """

    device: torch.device | str = "cpu"
    precision: str = "float32"
    size: int | None = None
    variants: dict[str, Callable[[], object]] = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.size or PEAK_SIZES[torch.device(self.device).type]
        left = torch.randn(self.size, self.size, device=self.device).to(PRECISIONS[self.precision])
        self.variants = {PEAK: lambda: left @ left}

    def fields(self, comparison: Comparison, name: str, flops: float) -> dict[str, float]:
        """FLOPs of a call, achieved FLOP/s and the share of the peak, as a benchmark's JSON names them."""
        peak_flops = 2.0 * float(self.size or 0) ** 3
        share = comparison.ratio(PEAK, name) * flops / peak_flops
        return {
            "flops": flops,
            f"{name}_flop_per_s": flops / comparison.median(name),
            "peak_flop_per_s": peak_flops / comparison.median(PEAK),
            f"{name}_share_of_peak": share,
        }


def count_flops(function: Callable[[], object]) -> int:
    """Floating point operations of a call's matrix products, forward and backward, counted from their shapes.

    Kernels that torch does not know (Triton, compiled code) are not seen: count the eager form of the same work.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def shares_of_time(call: Callable[[], object], device: torch.device | str, calls: int = 3, most: int = 15) -> Any:
    """Where a call's time goes: shares of the device's time by kernel (by operator on a CPU), the largest first."""
    on_cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
        synchronize(device)
    events = profiler.key_averages()
    times = {event.key: event.self_device_time_total if on_cuda else event.self_cpu_time_total for event in events}
    total = sum(times.values()) or 1.0  # a driver may let nobody look
    return {name: round(times[name] / total, 4) for name in sorted(times, key=times.__getitem__, reverse=True)[:most]}


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """The clock for what this process alone does: its time on the cores for one thread on a CPU, else the wall's."""
    alone = torch.device(options.device).type == "cpu" and options.threads == 1
    return time.process_time if alone else time.perf_counter


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """For a while, float32 matrix products in TF32 (on CUDA) where ``precision`` is "tf32", in float32 otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronize(device: torch.device | str) -> None:
    """Waits for what was started on a device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interquartile_range(values: list[float]) -> float:
    """Of any number of values; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every benchmark has: device, threads, rounds, warm-up and JSON.

    Args:
        description: first line of the help.
        defaults: other defaults than the usual ones.
    """
    options = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    options.add_argument("--rounds", type=int, default=10, help="timings of every variant")
    options.add_argument("--warmup", type=int, default=2, help="calls of every variant before timing")
    options.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    options.set_defaults(**defaults)
    return options


def prepare(options: argparse.Namespace) -> None:
    """Sets the threads; a second pool's threads would spin against the first's.

    Raises:
        SystemExit: CUDA is asked for and there is none, or CUDA graphs without CUDA.
    """
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch sees no CUDA device here; use --device cpu")
    if getattr(options, "cuda_graphs", False) and torch.device(options.device).type != "cuda":
        raise SystemExit(f"--cuda-graphs: expected --device cuda, found {options.device}")
    torch.set_num_threads(options.threads)


def machine(device: torch.device | str) -> str:
    """What the figures were measured on: processor, cores, torch."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    text = f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}"
    if torch.device(device).type == "cuda":
        text = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {text}"
    return text


def show(fields: Mapping[str, Any], as_json: bool) -> None:
    """Prints a result: one line of JSON, or a line a field."""
    if as_json:
        print(json.dumps(dict(fields)))
        return
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def peak_bytes(call: Callable[[], object], device: torch.device | str) -> int:
    """Most memory that a call holds at once, beyond what is held before; a first call may keep something."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))
