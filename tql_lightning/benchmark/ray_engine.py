"""Has Ray run a benchmark: on this machine's cores, or on the nodes of a cluster that share a file system."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.benchmark.progress import Progress
from tql_lightning.benchmark.worker import Job, Outcome, execute, record

WAIT_SECONDS = 1.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a run without GPUs sees those that the user chose
    "RAY_worker_niceness": "0",  # Ray's 15 lets training stand still beside other programs
}
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes through it: runs communicate by their folders


class Resources(NamedTuple):
    """What Ray gives a run, and where.

    Attributes:
        gpus: GPUs of a run; fractions share one.
        address: Address of a cluster ("auto" for the one that this machine belongs to); None starts a local Ray.
        retries: How often a run is started again after its worker or its node has ended.
    """

    gpus: float = 0.0
    address: str | None = None
    retries: int = 3


def require_ray(*further: str) -> Any:
    """The ray module.

    Args:
        further: Names of other packages that are needed with it.

    Raises:
        ValueError: One is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray

        for name in further:
            import_module(name)
    except ImportError as error:
        raise ValueError(
            f"engine: ray needs its packages ({error}); pip install 'tql-lightning[cluster]', or use --engine serial"
        ) from error
    return ray


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Joins a cluster, or starts a local Ray, for the time of the block.

    SIGTERM raises KeyboardInterrupt in the block, so that Ray ends with this process.
    """
    ray = require_ray()
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler exits without a clean-up
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def run_with_ray(runs: Sequence[PlannedRun], job: Job, resources: Resources, progress: Progress) -> None:
    """Trains the runs as tasks of Ray; one that fails does not keep the others from running.

    Raises:
        ValueError: Ray is not installed, or the cluster has not the resources of a single run.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; the runs stop.
    """
    with ray_cluster(resources.address) as ray:
        wanted = {"CPU": job.cpus, "GPU": resources.gpus}
        there = ray.cluster_resources()
        for name, amount in wanted.items():
            most = there.get(name, 0)
            if amount > most:
                raise ValueError(
                    f"{name.lower()}s: expected at most {most:g}, which Ray has, found {amount:g} for a run"
                )
        task = ray.remote(num_cpus=job.cpus, num_gpus=resources.gpus, max_retries=resources.retries)(execute)
        waiting = {task.remote(run, job): run for run in runs}
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=WAIT_SECONDS)
            for reference in ended:
                run = waiting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    record(run, job.output, Outcome("failed", str(error.cause)))
                except ray.exceptions.RayError as error:
                    lost = f"lost with its worker or node {resources.retries + 1} times: {error}"
                    record(run, job.output, Outcome("failed", lost))
            progress.show()
    progress.show(now=True)
