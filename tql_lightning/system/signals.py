"""Blocks of code that no Python signal handler interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class SignalGuard:
    """Context manager that delays signal handlers until its block ends.

    A handler that raises or saves then finds the block's work complete or not begun. This holds between `take_over` and
    `give_back`, for every handler that is a Python function, SIGINT's among them. A signal without one still ends the
    process.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: list[tuple[Handler, int, FrameType | None]] = []
        self._handlers: dict[signal.Signals, tuple[Handler, Handler]] = {}

    def take_over(self) -> None:
        """Wraps all present handlers; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.give_back()
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                ours = self._delayed(handler)
                self._handlers[signal.Signals(number)] = (ours, handler)
                signal.signal(number, ours)

    def give_back(self) -> None:
        """Restores the wrapped handlers, except where another one was set meanwhile."""
        for number, (ours, handler) in self._handlers.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, handler)
        self._handlers.clear()

    def _delayed(self, handler: Handler) -> Handler:
        def ours(number: int, frame: FrameType | None) -> None:
            if self._depth:
                self._waiting.append((handler, number, frame))
            else:
                handler(number, frame)

        return ours

    def __reduce__(self) -> tuple[type[SignalGuard], tuple[()]]:
        """A pickled copy holds no signal handlers."""
        return SignalGuard, ()

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        while self._waiting and not self._depth:
            handler, number, frame = self._waiting.pop(0)
            handler(number, frame)
