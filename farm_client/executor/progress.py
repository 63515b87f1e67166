"""Progress reports of a running assignment: samples done and logged metrics, at most a few times a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from farm_client.executor.means import reportable
from farm_client.executor.messages import Advance, Saved
from farm_client.executor.suspension import Suspension
from protocol.assignments import MetricPoint

INTERVAL_SECONDS: Final = 0.25
MAX_POINTS: Final = 200
"""Points in one report, as many as a progress message may carry; of more, the newest are sent."""
_MAX_NAME_CHARS: Final = 100


class StepsProgress(Protocol):
    """Hears how far an assignment's steps are."""

    def advance(self, samples: int) -> None:
        """Count samples as done."""

    def saved(self) -> None:
        """Report a snapshot, from whatever thread."""

    @property
    def suspension(self) -> Suspension | None:
        """Return where an order to suspend is seen; None where nobody gives one."""


class Unheard:
    """Progress that another process reports."""

    suspension: Suspension | None = None

    def advance(self, samples: int) -> None:
        """Count nothing."""

    def saved(self) -> None:
        """Report nothing."""


class ProgressReporter:
    """Sends ``Advance`` reports for one assignment at a time."""

    def __init__(
        self,
        send: Callable[[Advance | Saved], None],
        clock: Callable[[], float] = time.monotonic,
        suspension: Suspension | None = None,
    ) -> None:
        self.suspension = suspension
        self._send = send
        self._clock = clock
        self._points: deque[MetricPoint] = deque(maxlen=MAX_POINTS)
        self._assignment_id: str | None = None
        self._samples_done = 0
        self._sent_at = 0.0

    def start(self, assignment_id: str) -> None:
        """Begin an assignment: nothing is done yet."""
        self._assignment_id = assignment_id
        self._samples_done = 0
        self._sent_at = self._clock()

    def adopt(self, assignment_id: str) -> None:
        """Report what was begun without an assignment, from now on and from its first sample, as this one."""
        self._assignment_id = assignment_id

    def drop(self) -> None:
        """Forget what was begun without an assignment."""
        self._assignment_id, self._samples_done = None, 0
        self._points.clear()

    def advance(self, samples: int) -> None:
        """Count samples as done; report if the last report is old enough."""
        self._samples_done += samples
        now = self._clock()
        if self._assignment_id is not None and now - self._sent_at >= INTERVAL_SECONDS:
            self._report(now)

    def saved(self) -> None:
        """Report a snapshot of the assignment, from whatever thread."""
        if (assignment_id := self._assignment_id) is not None:
            self._send(Saved(assignment_id=assignment_id))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take what the researcher's code logged; the sink of ``farm_client.task.log``."""
        for name, value in reportable(metrics, "the logged").items():
            self._points.append(MetricPoint(name=name[:_MAX_NAME_CHARS], value=value, step=step))

    def finish(self) -> None:
        """End the assignment: report the metrics that are left."""
        if self._points:
            self._report(self._clock())
        self._assignment_id, self._samples_done = None, 0

    def _report(self, now: float) -> None:
        if self._assignment_id is None:
            return
        points = tuple(self._points.popleft() for _ in range(len(self._points)))  # others' threads may log meanwhile
        self._sent_at = now
        self._send(Advance(assignment_id=self._assignment_id, samples_done=self._samples_done, metrics=points))
