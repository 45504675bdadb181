"""Signals are heard between two steps that belong together, never within them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class SignalGuard:
    """A block that no handler of a signal interrupts: one that raises, or saves, finds it done or not begun.

    What is received within the block is handled at its end. Between `take_over` and `give_back` this holds for every
    handler that is a Python function, Ctrl-C's own among them; a signal without one still ends the process.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: list[tuple[Handler, int, FrameType | None]] = []
        self._handlers: dict[signal.Signals, tuple[Handler, Handler]] = {}

    def take_over(self) -> None:
        """Puts itself before the handlers that there are; without effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.give_back()
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                ours = self._let_wait(handler)
                self._handlers[signal.Signals(number)] = (ours, handler)
                signal.signal(number, ours)

    def give_back(self) -> None:
        """Puts the handlers back, but those that somebody has changed since."""
        for number, (ours, handler) in self._handlers.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, handler)
        self._handlers.clear()

    def _let_wait(self, handler: Handler) -> Handler:
        def ours(number: int, frame: FrameType | None) -> None:
            if self._depth:
                self._waiting.append((handler, number, frame))
            else:
                handler(number, frame)

        return ours

    def __reduce__(self) -> tuple[type[SignalGuard], tuple[()]]:
        """A copy has taken over nothing."""
        return SignalGuard, ()

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        while self._waiting and not self._depth:
            handler, number, frame = self._waiting.pop(0)
            handler(number, frame)
