"""Evaluations that cannot hold training up: one that hangs is given up, one that is no longer wanted stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tql_lightning.evaluation.envs import EnvError
from tql_lightning.evaluation.rollout import RolloutResult

POLL_SECONDS = 0.1


class RolloutStoppedError(Exception):
    """An evaluation was stopped before its last episode, because it was asked to be."""


def watch_rollout(
    play: Callable[[Callable[[], None]], RolloutResult],
    timeout: float,
    should_stop: Callable[[], bool],
) -> RolloutResult:
    """Plays episodes in a thread, so that this one can give up on a step that does not return.

    The thread of an environment that hangs cannot be ended; it stops at its next step, should that ever come.

    Args:
        play: `rollout` with all its arguments but ``before_step``, which it is given.
        timeout: seconds that a step (or making the environments) may take.
        should_stop: asked ten times a second.

    Raises:
        EnvError: a step took longer than ``timeout``; or what the environment raised.
        RolloutStoppedError: ``should_stop`` said so.
    """
    stopped = threading.Event()
    last_step = time.monotonic()
    results: list[RolloutResult] = []
    errors: list[BaseException] = []

    def before_step() -> None:
        nonlocal last_step
        last_step = time.monotonic()
        if stopped.is_set():
            raise RolloutStoppedError

    def run() -> None:
        try:
            results.append(play(before_step))
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    if should_stop():
        raise RolloutStoppedError
    thread = threading.Thread(target=run, name="rollout", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if should_stop():
                stopped.set()
            if time.monotonic() - last_step > timeout:
                if stopped.is_set():
                    raise RolloutStoppedError
                raise hang_error(timeout)
    finally:
        stopped.set()
    if errors:
        raise errors[0]
    return results[0]


def hang_error(timeout: float) -> EnvError:
    """What an environment that does not return is reported as."""
    return EnvError(f"an environment took longer than timeout={timeout:g} s for a step; it was given up")
