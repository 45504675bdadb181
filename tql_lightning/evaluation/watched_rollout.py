"""Evaluations that cannot block training: a hanging one is abandoned, and a running one can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tql_lightning.evaluation.envs import EnvError
from tql_lightning.evaluation.rollout import RolloutResult

POLL_SECONDS = 0.1


class RolloutStoppedError(Exception):
    """An evaluation was stopped on request before its last episode."""


def watch_rollout(
    play: Callable[[Callable[[], None]], RolloutResult],
    timeout: float,
    should_stop: Callable[[], bool],
) -> RolloutResult:
    """Plays episodes in a thread, so that the caller can abandon a step that does not return.

    Python cannot end the thread of a hanging environment. It stops if its step ever returns.

    Args:
        play: `rollout` with all arguments but ``before_step``.
        timeout: Most seconds that a step, or making the environments, may take.
        should_stop: Function that is called ten times a second; True stops the evaluation.

    Raises:
        EnvError: a step took longer than ``timeout``, or the environment failed.
        RolloutStoppedError: ``should_stop`` returned True.
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
        except BaseException as error:  # raised again below, in the calling thread
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
    """The error for an environment that does not return."""
    return EnvError(f"an environment took longer than timeout={timeout:g} s for a step; it was abandoned")
