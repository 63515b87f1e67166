"""The agent's lines on the terminal: one when something changes, always with the reason."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from protocol.frozen import Frozen
from protocol.terminal_text import one_line, plain_text

Format = Literal["lines", "json"]
_REPEAT_SECONDS: Final = 15.0
_SHOWN_EVENTS: Final = 20
_KEPT_EVENTS: Final = 500
_KEPT_TRACES: Final = 20
_TRACE_CHARS: Final = 20_000
"""Of each, the end: where it broke."""


class Event(Frozen):
    """One thing that happened. ``number`` counts them from 1 since the agent started; ``at`` is Unix seconds."""

    number: int
    at: float
    text: str


class Console:
    """Writes to stderr: plain lines for people, or JSON lines that carry the ids of task, round and assignment."""

    def __init__(self, line_format: Format = "lines", stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._render = _as_json if line_format == "json" else _text_alone
        self._last = ""
        self._told_at = 0.0
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._count = 0
        self._is_muted = False
        self._unsaid: deque[tuple[str, dict[str, str | int]]] = deque(maxlen=_KEPT_TRACES)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Only keep what is told, while something else is drawn in its place; tracebacks are written after that."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False
            while self._unsaid:
                text, fields = self._unsaid.popleft()
                self._write(text, **fields)

    def events(self) -> tuple[Event, ...]:
        """Return the last things that were told, the newest last; what is told again and again, once."""
        return self.events_after(self._count - _SHOWN_EVENTS)

    def events_after(self, number: int) -> tuple[Event, ...]:
        """Return those since the one of this number (0: all), as far as they are remembered."""
        return tuple(event for event in self._events if event.number > number)

    def tell(self, text: str, **ids: str | int) -> None:
        """Write a line, unless it says the same as the one before."""
        self._tell_if(text != self._last, text, text, ids)

    def keep_telling(self, subject: str, text: str, **ids: str | int) -> None:
        """Write a line when the subject changes, and every now and then while it does not."""
        due = time.monotonic() - self._told_at > _REPEAT_SECONDS
        self._tell_if(subject != self._last or due, subject, text, ids)

    def trace(self, text: str, error: BaseException, **ids: str | int) -> None:
        """Write a line and the traceback of an error: for whoever mends the program."""
        lines = "".join(traceback.format_exception(error))
        self._keep(text)
        self._write(text, traceback=lines.encode(errors="backslashreplace").decode(), **ids)

    def _tell_if(self, due: bool, subject: str, text: str, ids: dict[str, str | int]) -> None:
        if due:
            if subject != self._last:
                self._keep(text)
            self._last, self._told_at = subject, time.monotonic()
            self._write(text, **ids)

    def _keep(self, text: str) -> None:
        self._count += 1
        self._events.append(Event(number=self._count, at=time.time(), text=one_line(text)))

    def _write(self, text: str, **fields: str | int) -> None:
        """A terminal that is gone or a log on a full disk costs the lines, not the agent."""
        if self._is_muted:
            if "traceback" in fields:
                self._unsaid.append((text, {**fields, "traceback": str(fields["traceback"])[-_TRACE_CHARS:]}))
            return
        with suppress(OSError, ValueError):
            print(self._render(text, fields), file=self._stream, flush=True)


def _as_json(text: str, fields: dict[str, str | int]) -> str:
    """Return one line. A library for it brings rich and greenlet: 7 MB in every idle agent."""
    return json.dumps({"event": text, **fields, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")})


def _text_alone(text: str, fields: dict[str, str | int]) -> str:
    """Return the line, and the traceback under it; names and reasons of strangers are in both."""
    trace = fields.get("traceback")
    return one_line(text) if trace is None else f"{one_line(text)}\n{plain_text(str(trace))}"
