"""Child processes: one thread each, no SIGINT from the terminal, and never longer-lived than their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

STARTER_VARIABLE = "TQL_STARTER"  # process that a run of a benchmark ends with
POLL_SECONDS = 0.2


@contextmanager
def one_thread_in_new_processes() -> Iterator[None]:
    """Limits processes started in the block to one thread each.

    The workers already share the cores, so that their threads would wait for each other.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def sigint_blocked(*others: signal.Signals) -> Iterator[None]:
    """Blocks SIGINT in processes started in the block, since a terminal sends Ctrl-C to the whole process group.

    A handler set in the child would come too late: the signal could end it during its imports. ``others`` are blocked,
    too.
    """
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Waits for the parent process to end, even by SIGKILL, then ends this one. Run it in a daemon thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_with_starter() -> None:
    """Ends this process by SIGTERM when the process that `STARTER_VARIABLE` names has ended, even by SIGKILL.

    The variable is removed, since the processes that this one starts are not that process's children.
    """
    starter = os.environ.pop(STARTER_VARIABLE, None)
    if starter is not None:
        Thread(target=_watch, args=(int(starter),), daemon=True).start()


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
