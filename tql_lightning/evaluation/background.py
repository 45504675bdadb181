"""Evaluations and videos in a separate process, while training goes on."""

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
from tql_lightning.run.folder import update_name
from tql_lightning.system.child_processes import end_with_parent, one_thread_in_new_processes, sigint_blocked
from tql_lightning.trust.output import plain_messages

NICENESS = 15  # leaves the cores to training
START_SECONDS = 600.0  # least time that a process is given to start


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation to make: a checkpoint, taken after ``update``, and arguments of `rollout`.

    ``trusted`` says whether the checkpoint may have any module imported; see `load_checkpoint`.
    """

    update: int
    snapshot: str
    env_id: str
    episodes: int
    seed: int
    num_envs: int
    parallel: bool
    extraction: str | None
    max_episode_steps: int | None = None
    trusted: bool = True

    def work(self, beat: Callable[[], None]) -> RolloutResult:
        """Plays the episodes; calls ``beat`` before every step."""
        actor = load_checkpoint(self.snapshot, self.trusted, plays=False)[0].actor(self.extraction)
        return rollout(
            actor,
            self.env_id,
            self.episodes,
            self.seed,
            self.num_envs,
            self.parallel,
            before_step=beat,
            max_episode_steps=self.max_episode_steps,
        )


@dataclass(frozen=True)
class FilmJob:
    """Videos to make: a checkpoint, taken after ``update``, and arguments of `film_episodes`."""

    update: int
    snapshot: str
    env_id: str
    episodes: int
    seed: int
    extraction: str | None
    folder: str
    max_episode_steps: int | None = None
    trusted: bool = True

    def work(self, beat: Callable[[], None]) -> list[Path]:
        """Films the episodes and returns the files; calls ``beat`` before every step."""
        require_video()  # before anything imports MuJoCo
        actor = load_checkpoint(self.snapshot, self.trusted, plays=False)[0].actor(self.extraction)
        name = update_name(self.update)
        folder = Path(self.folder)
        return film_episodes(actor, self.env_id, self.episodes, self.seed, folder, name, beat, self.max_episode_steps)


Job = EvaluationJob | FilmJob


@dataclass(frozen=True)
class Outcome:
    """Result of a job's ``work``, or the reason why there is none."""

    job: Job
    result: Any
    error: str | None


class BackgroundEvaluator:
    """Runs jobs in order in a process with one CPU thread and low priority.

    If the process dies or hangs, its current job fails and a new process runs the others.

    Args:
        timeout: Seconds without a step after which a job counts as hung.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._pending: deque[Job] = deque()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._heartbeat: Any = None  # time of the process's last step; 0 before it has started
        self._given_at = 0.0  # time of the last submission, or of the start

    @property
    def pending(self) -> Sequence[Job]:
        """Jobs without an outcome, in order."""
        return tuple(self._pending)

    def submit(self, job: Job) -> None:
        """Adds a job and returns at once."""
        self._pending.append(job)
        self._given_at = time.monotonic()
        if self._pipe is None:
            self._start()
        else:
            with suppress(OSError):  # `next_outcome` notices a process that has died
                self._pipe.send(job)

    def next_outcome(self, wait_seconds: float = 0.0) -> Outcome | None:
        """Outcome of the oldest job, or None if there is none after ``wait_seconds``."""
        if not self._pending or self._pipe is None or self._process is None:
            return None
        try:
            if self._pipe.poll(wait_seconds):
                outcome: Outcome = self._pipe.recv()
                self._pending.popleft()
                return outcome
        except (EOFError, OSError):
            self._process.join()
            return self._give_up(f"the process that played it ended unexpectedly (exit code {self._process.exitcode})")
        return self._give_up(str(hang_error(self._timeout))) if self._hangs() else None

    def close(self) -> None:
        """Kills the process and abandons its job."""
        atexit.unregister(self.close)
        if self._process is not None and self._process.pid is not None:
            with suppress(ProcessLookupError):  # no process group before it has started or after it has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _hangs(self) -> bool:
        beat: float = self._heartbeat.value
        limit = self._timeout if beat else max(self._timeout, START_SECONDS)
        # An idle process takes no steps, so its time counts from the last submission.
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
        """Fails the oldest job and starts a new process for the others."""
        self.close()
        outcome = Outcome(self._pending.popleft(), None, reason)
        if self._pending:
            self._start()
        return outcome


def _work(pipe: Connection, heartbeat: Any) -> None:
    """Main function of the process; runs until the parent ends."""
    with suppress(PermissionError):
        os.setsid()  # so that `close` can kill the environments' processes with it
    # A scheduler may send SIGTERM to all processes of a run; this one ignores it, since its parent waits for it. A
    # handler, not SIG_IGN: the environments' processes inherit no handlers, and so still end at the signal.
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
    except (ValueError, OSError) as error:  # of environment, checkpoint or video, or a full disk
        return Outcome(job, None, str(error))
