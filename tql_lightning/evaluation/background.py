"""Evaluations and films in a process of their own, while training goes on."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.evaluation.rollout import RolloutResult, rollout
from tql_lightning.evaluation.videos import film_episodes, require_video
from tql_lightning.evaluation.watched_rollout import hang_error
from tql_lightning.nn.extraction import Extraction
from tql_lightning.run.folder import update_name
from tql_lightning.system.child_processes import end_with_parent, one_thread_in_new_processes, sigint_blocked
from tql_lightning.trust.output import plain_messages

NICENESS = 15  # training goes first where there are too few cores for both
START_SECONDS = 600.0  # how long a process may take to start, at least


@dataclass(frozen=True)
class EvaluationJob:
    """What is to be evaluated: a snapshot of the policy, and the arguments of `rollout`.

    Attributes:
        update: that the snapshot was taken after.
        snapshot: a checkpoint.
        env_id: as for `rollout`, and so the others.
    """

    update: int
    snapshot: str
    env_id: str
    episodes: int
    seed: int
    num_envs: int
    parallel: bool
    extraction: Extraction | None

    def work(self, beat: Callable[[], None]) -> RolloutResult:
        """Plays; ``beat`` is called before every step."""
        actor = load_checkpoint(self.snapshot, trusted=True)[0].actor(self.extraction)
        return rollout(actor, self.env_id, self.episodes, self.seed, self.num_envs, self.parallel, before_step=beat)


@dataclass(frozen=True)
class FilmJob:
    """What is to be filmed: a snapshot of the policy, and the arguments of `film_episodes`.

    Attributes:
        update: that the snapshot was taken after.
        snapshot: a checkpoint.
        env_id: as for `film_episodes`, and so the others.
        folder: of the videos.
    """

    update: int
    snapshot: str
    env_id: str
    episodes: int
    seed: int
    extraction: Extraction | None
    folder: str

    def work(self, beat: Callable[[], None]) -> list[Path]:
        """Films, and returns the files; ``beat`` is called before every step."""
        require_video()  # here: it has to come before anything imports MuJoCo
        actor = load_checkpoint(self.snapshot, trusted=True)[0].actor(self.extraction)
        name = update_name(self.update)
        return film_episodes(actor, self.env_id, self.episodes, self.seed, Path(self.folder), name, beat)


Job = EvaluationJob | FilmJob


@dataclass(frozen=True)
class Outcome:
    """What came of a job: what its ``work`` returned, or why there is nothing."""

    job: Job
    result: Any
    error: str | None


class BackgroundEvaluator:
    """A process that works through jobs in order; it computes on one CPU thread, at low priority.

    A process that dies or hangs costs the job it was at; another takes over the rest.

    Args:
        timeout: seconds without a step after which a job counts as hung.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._pending: deque[Job] = deque()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._heartbeat: Any = None  # when the process last took a step; 0 before it has started
        self._given_at = 0.0  # when it was last given a job, or started

    @property
    def pending(self) -> Sequence[Job]:
        """Jobs without an outcome yet, in order."""
        return tuple(self._pending)

    def submit(self, job: Job) -> None:
        """Adds a job and returns at once."""
        self._pending.append(job)
        self._given_at = time.monotonic()
        if self._pipe is None:
            self._start()
        else:
            with suppress(OSError):  # a process that has died is noticed by `next_outcome`
                self._pipe.send(job)

    def next_outcome(self, wait_seconds: float = 0.0) -> Outcome | None:
        """The outcome of the oldest job if it is there within so many seconds; None if not, or without jobs."""
        if not self._pending or self._pipe is None or self._process is None:
            return None
        try:
            if self._pipe.poll(wait_seconds):
                outcome: Outcome = self._pipe.recv()
                self._pending.popleft()
                return outcome
        except (EOFError, OSError):
            self._process.join()
            return self._give_up(f"the process that played it ended unasked (exit code {self._process.exitcode})")
        return self._give_up(str(hang_error(self._timeout))) if self._hangs() else None

    def close(self) -> None:
        """Ends the process at once, with whatever it is at."""
        atexit.unregister(self.close)
        if self._process is not None and self._process.pid is not None:
            with suppress(ProcessLookupError):  # it leads no group before it has started, and none once it ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _hangs(self) -> bool:
        beat: float = self._heartbeat.value
        limit = self._timeout if beat else max(self._timeout, START_SECONDS)
        # A process with nothing to do takes no steps: what it is given later counts from then.
        return time.monotonic() - max(beat, self._given_at) > limit

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._heartbeat = context.RawValue("d", 0.0)
        self._process = context.Process(target=_work, args=(theirs, self._heartbeat), name="evaluation")
        with one_thread_in_new_processes(), sigint_blocked(signal.SIGTERM):
            self._process.start()
        theirs.close()
        self._given_at = time.monotonic()
        atexit.register(self.close)
        for job in self._pending:
            self._pipe.send(job)

    def _give_up(self, reason: str) -> Outcome:
        """The oldest job has failed; another process goes on with the rest."""
        self.close()
        outcome = Outcome(self._pending.popleft(), None, reason)
        if self._pending:
            self._start()
        return outcome


def _work(pipe: Connection, heartbeat: Any) -> None:
    """What the process does until its parent ends."""
    with suppress(PermissionError):
        os.setsid()  # so that it can be ended together with the environments' processes
    # Whoever ends a run may send SIGTERM to all its processes; this one ends with its parent, which waits for it. The
    # signal was blocked until here. Environments' processes must hear it, and do, since they begin without handlers.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.nice(NICENESS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with plain_messages(), suppress(EOFError, OSError):
        while True:
            pipe.send(_outcome(pipe.recv(), heartbeat))


def _outcome(job: Job, heartbeat: Any) -> Outcome:
    def beat() -> None:
        heartbeat.value = time.monotonic()

    beat()
    try:
        return Outcome(job, job.work(beat), None)
    except (ValueError, OSError) as error:  # of environment, checkpoint or film, or a disk that is full
        return Outcome(job, None, str(error))
