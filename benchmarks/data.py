"""How fast are minibatches, per source, against a plain DataLoader, against bare gathers and against an update?

    python -m benchmarks.data                     # in memory, mapped, n-step, chunks; a chunk of K batches a call
    python -m benchmarks.data --larger-than 1     # and 4 GB of mapped files, sampled by a process with 1 GB

The plain DataLoader draws as many rows by a RandomSampler and collates them by default. It gives batches alone, and so
do "memory", "mapped", "n_step" and "action_chunk"; "..._and_noise" is what training gets: batches with all the random
numbers that the losses use. "gathers" are the five gathers on rows drawn beforehand: what the hardware could do;
"indexing" are the same as ``field[rows]``. The update is one of the 0.4m model at batch 256. On the CPU seconds are
those of this process, not those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks import harness
from tql_lightning import TQL, TransitionDataset
from tql_lightning.batch import Batch, at_update
from tql_lightning.data.counter_random import uniform
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.sources.npy_folder import load_npy_folder, save_npy_folder
from tql_lightning.data.windows import Span
from tql_lightning.nn.critic import TransformerCritic

OBSERVATION, ACTION, BATCH, HIDDEN = 37, 5, 256, 128  # cube-double and the 0.4m critic
EPISODE = 500
CHUNKS = 20  # in one timing
FILE_GIGABYTES = 4.0
ROW_BYTES = 4 * (2 * OBSERVATION + ACTION + 2) + 2  # float32 but for the flags


class Rows(Dataset[tuple[torch.Tensor, ...]]):
    """A dataset as PyTorch's tutorials write it: one transition at a time."""

    def __init__(self, dataset: TransitionDataset) -> None:
        self.fields = [torch.from_numpy(getattr(dataset, name)) for name in Batch._fields]

    def __len__(self) -> int:
        return len(self.fields[0])

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        return tuple(field[row] for field in self.fields)


def dataset_of(transitions: int) -> TransitionDataset:
    """Random transitions of cube-double's sizes, in episodes cut by its time limit."""
    rng = np.random.default_rng(0)
    ends = np.arange(transitions) % EPISODE == EPISODE - 1
    ends[-1] = True
    return TransitionDataset.from_arrays(
        rng.standard_normal((transitions, OBSERVATION), dtype=np.float32),
        rng.uniform(-0.9, 0.9, (transitions, ACTION)).astype(np.float32),
        rng.standard_normal(transitions, dtype=np.float32),
        np.zeros(transitions, dtype=bool),
        ends,
        rng.standard_normal((transitions, OBSERVATION), dtype=np.float32),
        name="benchmark",
    )


def updater(device: str) -> Callable[[], object]:
    """What makes one update of the 0.4m model, on a batch drawn beforehand."""
    model = TQL(OBSERVATION, ACTION, critic=partial(TransformerCritic, hidden_dim=HIDDEN)).to(device)
    optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    batches, noises = TransitionSampler(dataset_of(1000), BATCH, 0, device, spec=model.update_spec).chunk(0, 1)
    batch, noise = at_update(batches, 0), at_update(noises, 0)

    def update() -> None:
        optimizer.zero_grad()
        model.losses(batch, noise, model.current_inputs(), with_metrics=False).total.backward()
        model.before_step({})
        optimizer.step()

    return update


def batches(sampler: TransitionSampler, updates: int) -> Callable[[], Batch]:
    """Chunk after chunk of K batches alone, of rows drawn as the sampler draws them."""
    numbers, windows = count(), sampler.windows
    order = torch.arange(BATCH, device=windows.storage.device)

    def chunk() -> Batch:
        first = next(numbers) * updates
        drawn = uniform(0, torch.arange(first, first + updates, device=order.device), order, 1)[..., 0]
        return windows.batch((drawn * len(windows)).long().clamp_(max=len(windows) - 1))

    return chunk


def chunks(sampler: TransitionSampler, updates: int) -> Callable[[], tuple[Any, Any]]:
    """Chunk after chunk of K batches with their noise."""
    numbers = count()
    return lambda: sampler.chunk(next(numbers) * updates, updates)


def repeat(chunk: Callable[[], object]) -> None:
    """As many chunks as a timing needs."""
    for _ in range(CHUNKS):
        chunk()


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of a batch from each source, and what they are of a DataLoader's and of an update's."""
    dataset, device, updates = dataset_of(options.transitions), options.device, options.updates_per_step
    save_npy_folder(folder / "set", dataset)
    mapped = load_npy_folder(str(folder / "set"))
    rows = Rows(dataset)
    sampled = RandomSampler(rows, replacement=True, num_samples=10**9)
    loader = iter(DataLoader(rows, batch_size=BATCH, sampler=sampled))
    sampler = partial(TransitionSampler, batch_size=BATCH, seed=0, device=device)
    memory = sampler(dataset, storage=options.storage)
    place = memory.windows.storage.device
    fields = [field.to(place) for field in rows.fields]
    drawn = cycle([torch.randint(len(dataset), (updates * BATCH,), device=place) for _ in range(50)])

    def gathers() -> None:
        rows = next(drawn)
        for name in Batch._fields:
            memory.windows.storage.take(name, rows)

    def indexing() -> None:
        rows = next(drawn).view(updates, BATCH)
        for field in fields:
            field[rows]

    sources = {
        "memory": memory,
        "mapped": sampler(mapped, storage="cpu"),
        "n_step": sampler(dataset, storage=options.storage, span=Span(n_step=options.n_step)),
        "action_chunk": sampler(dataset, storage=options.storage, span=Span(action_chunk=options.action_chunk)),
    }
    update, peak = updater(device), harness.Peak(device)
    variants: dict[str, Callable[[], object]] = {
        **{name: batches(source, updates) for name, source in sources.items()},
        **{f"{name}_and_noise": chunks(source, updates) for name, source in sources.items()},
        "gathers": gathers,
        "indexing": indexing,
        "dataloader": lambda: [tuple(field.to(device) for field in next(loader)) for _ in range(updates)],
    }
    per_call = {name: updates * (1 if name == "dataloader" else CHUNKS) for name in variants} | {"update": 1}
    batches_of = list(variants)
    for name in variants.keys() - {"dataloader"}:
        variants[name] = partial(repeat, variants[name])
    variants |= {"update": update, **peak.variants}
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    times = harness.alternate(variants, device, options.rounds, options.warmup, clock=clock)
    result: dict[str, Any] = {"machine": harness.machine(device), "transitions": len(dataset), "device": device}
    for name in batches_of:
        scale = per_call[name] / per_call["dataloader"]
        result[f"{name}_s"] = times.median(name) / per_call[name]
        result[f"{name}_spread_s"] = times.spread(name) / per_call[name]
        result[f"{name}_batches_per_s"] = per_call[name] / times.median(name)
        result[f"{name}_times_dataloader"] = scale * times.ratio("dataloader", name)
        result[f"{name}_times_dataloader_spread"] = scale * times.ratio_spread("dataloader", name)
        result[f"{name}_share_of_update"] = times.ratio(name, "update") / per_call[name]
    result["memory_over_gathers"] = times.ratio("memory", "gathers")
    return result | times.fields("update") | peak.fields(times, "update", float(harness.count_flops(update)))


def larger_than_memory(gigabytes: float, folder: Path, updates: int) -> dict[str, Any]:
    """Samples 4 GB of mapped files in a process that may allocate ``gigabytes``; first uncached, then cached."""
    files = folder / "large"
    write_large(files)
    result: dict[str, Any] = {"file_gb": sum(file.stat().st_size for file in files.iterdir()) / 1e9}
    for kind in ("uncached", "cached"):
        if kind == "uncached":
            drop_from_cache(files)
        command = [sys.executable, "-m", "benchmarks.data", "--child", str(files), "--updates-per-step", str(updates)]
        child = subprocess.run([*command, "--limit", str(gigabytes)], check=True, capture_output=True, text=True)
        result |= {f"{kind}_{name}": value for name, value in json.loads(child.stdout).items()}
    command = [*command[:4], str(files), "--in-memory", "--limit", str(gigabytes)]
    whole = subprocess.run(command, check=False, capture_output=True, text=True)
    result["read_into_memory"] = "fits" if whole.returncode == 0 else whole.stderr.strip().splitlines()[-1]
    return result


def write_large(files: Path) -> None:
    """The same random block again and again, as `save_npy_folder` lays a dataset out."""
    block = dataset_of(100_000)
    save_npy_folder(files.with_name("block"), block)
    repeats = int(FILE_GIGABYTES * 1e9 / ROW_BYTES / len(block))
    files.mkdir()
    for source in files.with_name("block").iterdir():
        if source.suffix != ".npy":
            (files / source.name).write_bytes(source.read_bytes())
            continue
        array = np.load(source)
        target = np.lib.format.open_memmap(
            files / source.name, mode="w+", dtype=array.dtype, shape=(repeats * len(array), *array.shape[1:])
        )
        for repeat in range(repeats):
            target[repeat * len(array) : (repeat + 1) * len(array)] = array
        target.flush()


def drop_from_cache(files: Path) -> None:
    """Makes the next reads come from the disk, where the system has a way to ask for it."""
    for file in files.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def sample_within(options: argparse.Namespace) -> dict[str, float]:
    """The child: limits what it may allocate, loads, checks and samples; tells time and memory."""
    limit = int(options.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    start = time.perf_counter()
    dataset = load_npy_folder(options.child, in_memory=options.in_memory)
    loaded = time.perf_counter() - start
    chunk = chunks(
        TransitionSampler(dataset, BATCH, 0, spec=TQL(OBSERVATION, ACTION).update_spec), options.updates_per_step
    )
    clocks = (time.perf_counter, time.process_time)
    seconds: list[list[float]] = []
    anonymous, resident = 0, 0
    for _ in range(options.rounds * 3):
        before = [clock() for clock in clocks]
        chunk()
        seconds.append([clock() - start for clock, start in zip(clocks, before, strict=True)])
        anonymous, resident = max(anonymous, status_mb("RssAnon")), max(resident, status_mb("VmRSS"))
    wall, processor = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "load_and_check_s": loaded,
        "batches_per_s": options.updates_per_step / wall,
        "batches_per_processor_s": options.updates_per_step / processor,
        "anonymous_mb": anonymous,
        "resident_mb": resident,
        "peak_resident_mb": status_mb("VmHWM"),
    }


def status_mb(name: str) -> int:
    """A figure of this process as the kernel gives it, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) // 1000


def main() -> None:
    """Measures and prints."""
    parser = harness.parser(__doc__, warmup=1)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--updates-per-step", type=int, default=10, help="K")
    parser.add_argument("--n-step", type=int, default=3)
    parser.add_argument("--action-chunk", type=int, default=5)
    parser.add_argument("--storage", default="auto", help="auto, trainer or cpu, of the set in memory")
    parser.add_argument("--folder", type=Path, help="where to write (and remove) files; default: a temporary folder")
    parser.add_argument("--larger-than", type=float, metavar="GB", help="also sample 4 GB of files with so much memory")
    for hidden, kind in {"--child": {}, "--limit": {"type": float}, "--in-memory": {"action": "store_true"}}.items():
        parser.add_argument(hidden, help=argparse.SUPPRESS, **kind)  # type: ignore[arg-type]
    options = parser.parse_args()
    harness.prepare(options)
    if options.child:
        print(json.dumps(sample_within(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = compare(options, Path(folder))
        if options.larger_than:
            result |= larger_than_memory(options.larger_than, Path(folder), options.updates_per_step)
    harness.show(result, options.json)


if __name__ == "__main__":
    main()
