"""What an assignment's code printed and logged, on its way to the researcher: batched, bounded, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from protocol.limits import MAX_LOG_LINE_CHARS, MAX_LOG_LINES_PER_MESSAGE
from protocol.messages import AssignmentProgress, LogLine, MetricPoint, Progress

MAX_METRICS_PER_FLUSH: Final = 200
_MAX_NOTES_PER_FLUSH: Final = 4  # one of them on what was dropped
_MAX_LINES_PER_FLUSH: Final = MAX_LOG_LINES_PER_MESSAGE - _MAX_NOTES_PER_FLUSH


@dataclass(slots=True)
class PendingOutput:
    """Lines and metrics since the last flush. What is over the limit is dropped and counted in a note."""

    lines: list[LogLine] = field(default_factory=list)
    metrics: list[MetricPoint] = field(default_factory=list)
    notes: list[LogLine] = field(default_factory=list)
    dropped: int = 0

    def add_line(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Keep a printed line."""
        if len(self.lines) < _MAX_LINES_PER_FLUSH:
            self.lines.append(LogLine(stream=stream, text=text))
        else:
            self.dropped += 1

    def add_note(self, text: str) -> None:
        """Keep a line of the agent's own; what the code prints cannot crowd it out."""
        if len(self.notes) < _MAX_NOTES_PER_FLUSH - 1:
            self.notes.append(LogLine(stream="agent", text=text[:MAX_LOG_LINE_CHARS]))

    def add_metrics(self, points: tuple[MetricPoint, ...]) -> None:
        """Keep logged values."""
        room = MAX_METRICS_PER_FLUSH - len(self.metrics)
        self.metrics.extend(points[:room])
        self.dropped += max(0, len(points) - room)

    def take(self, progress: Callable[[], AssignmentProgress]) -> Progress | None:
        """Return what is pending as one message, and forget it; None if there is nothing."""
        if not self.lines and not self.metrics and not self.notes:
            return None
        if self.dropped:
            note = f"{self.dropped} lines or metrics dropped: too many at once"
            self.notes.append(LogLine(stream="agent", text=note))
        message = Progress(progress=progress(), metrics=tuple(self.metrics), logs=(*self.lines, *self.notes))
        self.lines, self.metrics, self.notes, self.dropped = [], [], [], 0
        return message
