"""An executor's output: any text that the code prints, and from its bytes to lines that fit a message."""

from __future__ import annotations

import codecs
import io
import sys
from contextlib import suppress
from typing import Final

from protocol.limits import MAX_LOG_LINE_CHARS

_CUT: Final = " … (line cut)"


def print_anything() -> None:
    """Have this process write whatever the researcher's code prints: UTF-8, what it cannot say as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def flush_streams() -> None:
    """Push the researcher's output into the pipes; their code may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


class LineSplitter:
    """Cuts a byte stream into lines of at most ``MAX_LOG_LINE_CHARS``; what is over is dropped, with a note.

    Holds at most one line: output without a newline cannot fill the agent's memory. A carriage return (a progress
    bar) ends a line too.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line = ""

    def feed(self, data: bytes) -> list[str]:
        """Add bytes and return the lines that they complete, without their ends; empty lines are left out."""
        *complete, rest = (self._line + self._decoder.decode(data).replace("\r", "\n")).split("\n")
        self._line = rest[: MAX_LOG_LINE_CHARS + 1]
        return [_fitted(line) for line in complete if line]

    def finish(self) -> list[str]:
        """Return the last line, if the stream ended inside one."""
        last, self._line = self._line + self._decoder.decode(b"", final=True), ""
        return [_fitted(last)] if last else []


def _fitted(line: str) -> str:
    if len(line) <= MAX_LOG_LINE_CHARS:
        return line
    return line[: MAX_LOG_LINE_CHARS - len(_CUT)] + _CUT
