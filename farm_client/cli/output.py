"""The output of `farm`: results on stdout, messages on stderr; with --json, results are envelopes.

``docs/reference/json-output.md`` lists every kind, and a test compares the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from protocol.terminal_text import one_line, plain_text


class SafeConsole(Console):
    """Makes control characters harmless in all that is drawn; rich's own controls and colours pass."""

    def __init__(self, *, ignores_broken_pipe: bool, **options: Any) -> None:
        """Take rich's options. A console that ``ignores_broken_pipe`` falls silent once its reader has left."""
        super().__init__(highlight=False, emoji=False, **options)
        self._ignores_broken_pipe = ignores_broken_pipe

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the text of each segment made plain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain_text(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Fall silent, or raise the BrokenPipeError on. rich's own way would be to end the process."""
        if not self._ignores_broken_pipe:
            raise  # noqa: PLE0704 (rich calls this while it handles the error)
        self.quiet = True


SCHEMA_VERSION: Final = 1
PIPE_COLUMNS: Final = 10_000
PLOT_COLUMNS: Final = 120

Data = BaseModel | Mapping[str, Any] | Sequence[BaseModel]


class OutputKind(StrEnum):
    """What an envelope's ``data`` is."""

    ERROR = "error"
    LOGIN = "login"
    INIT = "init"
    RECIPES = "recipes"
    RECIPE = "recipe"
    SUBMITTED = "submitted"
    SWEEP = "sweep"
    TASK = "task"
    TASKS = "tasks"
    DETAIL = "detail"
    SHARDS = "shards"
    WHY = "why"
    EXPLANATION = "explanation"
    CLIENTS = "clients"
    CLIENT_REMOVED = "client_removed"
    LEADERBOARD = "leaderboard"
    CERTIFICATE = "certificate"
    CERTIFICATE_CHECK = "certificate_check"
    EVENT = "event"
    LOG = "log"
    METRIC = "metric"
    CHECKPOINTS = "checkpoints"
    MODEL = "model"
    FAILED_STEPS = "failed_steps"
    ARTEFACTS = "artefacts"
    OUTPUT = "output"
    RESULTS = "results"
    REMOVED = "removed"
    RUN = "run"
    DEMO = "demo"


class Output:
    """Where a command's words go.

    ``results`` is for what was asked for, ``chatter`` for what helps a person to follow. Nothing but envelopes
    goes to stdout when ``as_json`` is set.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        is_fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.results = SafeConsole(
            ignores_broken_pipe=False,
            file=sys.stdout,
            soft_wrap=not sys.stdout.isatty(),
            # What reads a pipe wants a line for each record, however long.
            width=None if is_fixed else PIPE_COLUMNS,
        )
        self.chatter = SafeConsole(ignores_broken_pipe=True, file=sys.stderr, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Return whether stdout is a terminal on which a picture can be redrawn."""
        return not self.as_json and self.results.is_terminal

    @property
    def columns(self) -> int:
        """How wide a plot may be."""
        return min(self.results.width, PLOT_COLUMNS)

    def emit(self, kind: OutputKind, data: Data, picture: Callable[[], RenderableType] | None = None) -> None:
        """Give one result: an envelope with --json, else what ``picture`` draws (nothing without one)."""
        if self.as_json:
            sys.stdout.write(envelope(kind, data) + "\n")
            sys.stdout.flush()
        elif picture is not None:
            self.draw(picture())

    def draw(self, drawn: RenderableType) -> None:
        """Print a picture on stdout."""
        with self.results.capture() as captured:
            self.results.print(drawn)
        # Tables fill their last column up with spaces.
        lines = (line.rstrip(" ") for line in captured.get().split("\n"))
        self.results.file.write("\n".join(lines))
        self.results.file.flush()

    def say(self, text: str) -> None:
        """Print a message that is not the result; ``text`` may hold rich markup."""
        with contextlib.suppress(OSError):  # A full disk under a log of what was said is no reason to end.
            self.chatter.print(text)

    def complain(self, text: str) -> None:
        """Print one error line; ``text`` is taken literally."""
        with contextlib.suppress(OSError):
            self.chatter.print(Text.assemble(("farm:", "bold red"), " ", one_line(" ".join(text.split()))))


def envelope(kind: OutputKind, data: Data) -> str:
    """Return one line of JSON in ASCII: ``{"schema": 1, "kind": …, "data": …}``.

    All else is escaped as JSON does it: control characters of strangers, and what no encoding of a pipe has.
    """
    return json.dumps({"schema": SCHEMA_VERSION, "kind": kind.value, "data": _plain(data)})


def _plain(data: Data) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json")
    if isinstance(data, Mapping):
        return dict(data)
    return [_plain(item) for item in data]
