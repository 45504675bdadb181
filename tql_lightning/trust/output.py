"""Output of a program that reads strangers' files: no control sequence of a terminal comes from what it read."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from tql_lightning.trust.text import escaped

# What progress bars write to move within the line, or up by some.
_MOVES = re.compile(r"[\r\n]*(\x1b\[A)*|\r")
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def plain_messages() -> Iterator[None]:
    """Within the block, warnings and log records show control characters as text, and our warnings no source line."""
    show, make, form = warnings.showwarning, logging.getLogRecordFactory(), warnings.formatwarning

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        plain = escaped(str(message), keep="\n\t")
        show(plain if plain != str(message) else message, category, filename, lineno, file, line)

    def form_briefly(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        own = Path(filename).is_relative_to(_PACKAGE)
        return f"tql: warning: {message}\n" if own else form(message, category, filename, lineno, line)

    def make_plainly(*fields: Any, **named: Any) -> logging.LogRecord:
        record = make(*fields, **named)
        text = record.getMessage()
        if not text.isprintable():
            record.msg, record.args = escaped(text, keep="\n\t"), ()
        return record

    warnings.showwarning, warnings.formatwarning = show_plainly, form_briefly
    logging.setLogRecordFactory(make_plainly)
    try:
        yield
    finally:
        warnings.showwarning, warnings.formatwarning = show, form
        logging.setLogRecordFactory(make)


@contextmanager
def plain_output() -> Iterator[None]:
    """Within the block, all that is printed shows control characters as text, but for the moves of progress bars."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _PlainStream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def write_moves(stream: TextIO, moves: str) -> None:
    """Writes a display's own control sequences, which `plain_output` would show as text."""
    (stream._stream if isinstance(stream, _PlainStream) else stream).write(moves)


class _PlainStream:
    """A stream of text that writes control characters in Python's notation."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        moves = cast("re.Match[str]", _MOVES.match(text)).end()
        self._stream.write(text[:moves] + escaped(text[moves:], keep="\n\t"))
        return len(text)
