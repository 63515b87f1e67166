"""How much one peer may send: budgets for a connection, for a client's output of one task, and for a task's output.

Pure: ``now`` is in seconds and never runs backwards. Each budget is a token bucket (J. S. Turner, "New directions in
communications", IEEE Communications Magazine, 1986): it fills at a rate up to a burst. All are far above what an honest
agent sends, and low enough that the farm does not feel what they let through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MESSAGES_PER_SECOND: Final = 200.0
"""What a connection may send without any work; an idle agent sends one or two messages in two seconds."""
MESSAGES_BURST: Final = 1000.0
MESSAGES_PER_ASSIGNMENT: Final = 64.0
"""What each assignment adds: however small its rounds are, a client that works never runs out."""
BYTES_PER_MESSAGE: Final = 16 * 1024
"""A frame counts as one message more for each so many bytes."""
LONGEST_WAIT_SECONDS: Final = 2.0
FLOOD_SECONDS: Final = 1.0
"""Who sends more than it may for so long gets no work until it rests."""
TOLERATED_SECONDS: Final = 10.0
"""Who sends more than it may for so long, although it is read more slowly meanwhile, gets a strike."""
_RESTED_SHARE: Final = 0.1
"""Of the burst: with so much saved up, a connection counts as having rested."""

LINES_PER_SECOND: Final = 100.0
LINES_BURST: Final = 4000.0
LOG_BYTES_PER_SECOND: Final = 64 * 1024.0
LOG_BYTES_BURST: Final = 1024 * 1024.0
POINTS_PER_SECOND: Final = 200.0
POINTS_BURST: Final = 4000.0
"""What one client may say of one task: log lines, their bytes, metric points."""
TASK_FACTOR: Final = 8.0
"""All clients together may say so many times as much of one task."""
MAX_METRIC_NAMES: Final = 1000
"""Names of one task's metrics."""
SAY_EVERY_SECONDS: Final = 10.0
"""How often at most a task's log says that something was dropped."""

FIRST_PENALTY_SECONDS: Final = 5.0
LONGEST_PENALTY_SECONDS: Final = 300.0
FORGIVEN_AFTER_SECONDS: Final = 3600.0


class Bucket:
    """A token bucket, full at first. ``level`` may be negative: a debt that the rate pays off."""

    def __init__(self, rate_per_second: float, burst: float) -> None:
        self._rate_per_second = rate_per_second
        self._burst = burst
        self._level = burst
        self._at: float | None = None

    def level(self, now: float) -> float:
        """Return what may be taken without a debt."""
        if self._at is not None:
            self._level = min(self._burst, self._level + self._rate_per_second * max(now - self._at, 0.0))
        self._at = now
        return self._level

    def take(self, cost: float, now: float) -> float:
        """Take it, by a debt if need be; return after how many seconds the debt is paid off (0: there is none)."""
        self._level = self.level(now) - cost
        return max(-self._level, 0.0) / self._rate_per_second

    def try_take(self, cost: float, now: float) -> bool:
        """Take it if it is there; false, and nothing taken, if not."""
        if self.level(now) < cost:
            return False
        self._level -= cost
        return True

    def grant(self, amount: float) -> None:
        """Add what was earned, up to the burst."""
        self._level = min(self._burst, self._level + amount)


@dataclass(frozen=True, slots=True)
class FrameVerdict:
    """What to do about a frame: read on after ``wait_seconds``.

    ``is_flood``: it has gone on for a while, and the client should get no work; ``is_violation``: for too long.
    """

    wait_seconds: float
    is_flood: bool = False
    is_violation: bool = False


class ConnectionAllowance:
    """What one connection may send. Who sends too much is read more slowly, and if that does not help, gets strikes."""

    def __init__(self) -> None:
        self._bucket = Bucket(MESSAGES_PER_SECOND, MESSAGES_BURST)
        self._busy_since: float | None = None
        self._is_flood = False

    def take(self, messages: int, size_bytes: int, now: float) -> FrameVerdict:
        """Count a frame of so many messages, good ones or not."""
        if self._bucket.level(now) >= _RESTED_SHARE * MESSAGES_BURST:
            self._busy_since, self._is_flood = None, False
        wait_seconds = self._bucket.take(max(messages, 1) + size_bytes / BYTES_PER_MESSAGE, now)
        if wait_seconds == 0:
            return FrameVerdict(0.0, is_flood=self._is_flood)
        if self._busy_since is None:
            self._busy_since = now
        self._is_flood |= now - self._busy_since >= FLOOD_SECONDS
        is_violation = now - self._busy_since >= TOLERATED_SECONDS
        if is_violation:
            self._busy_since = now
        return FrameVerdict(min(wait_seconds, LONGEST_WAIT_SECONDS), self._is_flood, is_violation)

    def earn(self) -> None:
        """Note that an assignment was given to it: it will have something to say."""
        self._bucket.grant(MESSAGES_PER_ASSIGNMENT)


class _Output:
    """The output that is kept of a task: by one client, or with ``factor`` by all of them."""

    def __init__(self, factor: float = 1.0) -> None:
        self.lines = Bucket(factor * LINES_PER_SECOND, factor * LINES_BURST)
        self.log_bytes = Bucket(factor * LOG_BYTES_PER_SECOND, factor * LOG_BYTES_BURST)
        self.points = Bucket(factor * POINTS_PER_SECOND, factor * POINTS_BURST)


class _Dropped:
    """What of one client and task was dropped since the last note in the task's log."""

    def __init__(self) -> None:
        self.lines = 0
        self.points = 0
        self.said_at = float("-inf")

    def note(self, now: float) -> str | None:
        """Return the note that is due now, if one is; then it counts as written."""
        if not (self.lines or self.points) or now - self.said_at < SAY_EVERY_SECONDS:
            return None
        parts = [(self.lines, "log lines"), (self.points, "metric values")]
        said = " and ".join(f"{count} {what}" for count, what in parts if count)
        self.lines = self.points = 0
        self.said_at = now
        return f"{said} dropped: more than a task may say (docs/reference/limits.md)"


class OutputBudgets:
    """Which log lines and metric points of which client and task are kept, and what to say of the others."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._of_clients: OrderedDict[tuple[str, str], _Output] = OrderedDict()
        self._of_tasks: OrderedDict[str, _Output] = OrderedDict()
        self._names: OrderedDict[str, set[str]] = OrderedDict()
        self._dropped: dict[tuple[str, str], _Dropped] = {}

    def takes_line(self, client_id: str, task_id: str, size_bytes: int, now: float) -> bool:
        """Whether a log line of so many bytes is kept; then it is counted."""
        outputs = self._outputs(client_id, task_id)
        if all(o.lines.level(now) >= 1 and o.log_bytes.level(now) >= size_bytes for o in outputs):
            for output in outputs:
                output.lines.take(1, now)
                output.log_bytes.take(size_bytes, now)
            return True
        self._drop(client_id, task_id).lines += 1
        return False

    def takes_point(self, client_id: str, task_id: str, name: str, now: float) -> bool:
        """Whether a metric point of that name is kept; then it is counted."""
        outputs = self._outputs(client_id, task_id)
        if all(o.points.level(now) >= 1 for o in outputs) and self._knows_name(task_id, name):
            for output in outputs:
                output.points.take(1, now)
            return True
        self._drop(client_id, task_id).points += 1
        return False

    def notes(self, now: float) -> list[tuple[str, str, str]]:
        """Return (client id, task id, line) for each of whom a task's log must say now that something was dropped."""
        said = []
        for (client_id, task_id), dropped in list(self._dropped.items()):
            if (line := dropped.note(now)) is not None:
                said.append((client_id, task_id, line))
            elif now - dropped.said_at >= SAY_EVERY_SECONDS:
                del self._dropped[client_id, task_id]
        return said

    def _outputs(self, client_id: str, task_id: str) -> tuple[_Output, _Output]:
        return (
            _newest(self._of_clients, (client_id, task_id), _Output, self._most),
            _newest(self._of_tasks, task_id, lambda: _Output(TASK_FACTOR), self._most),
        )

    def _knows_name(self, task_id: str, name: str) -> bool:
        names = _newest(self._names, task_id, set, self._most)
        if name not in names and len(names) < MAX_METRIC_NAMES:
            names.add(name)
        return name in names

    def _drop(self, client_id: str, task_id: str) -> _Dropped:
        return self._dropped.setdefault((client_id, task_id), _Dropped())


def _newest(known: OrderedDict[K, V], key: K, make: Callable[[], V], most: int) -> V:
    """Return what is known by a key, made if need be; what was not used for longest gives way to it."""
    value = known.get(key)
    if value is None:
        value = known[key] = make()
        if len(known) > most:
            known.popitem(last=False)
    known.move_to_end(key)
    return value


class LeastRate:
    """Whether something goes on at a rate at least, looked at over windows: a pause within one is no fault."""

    def __init__(self, bytes_per_second: float, window_seconds: float, now: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._window_seconds = window_seconds
        self._began_at = now
        self._bytes = 0
        self._last_was_kept = True

    def add(self, size_bytes: int, now: float) -> None:
        """Count bytes."""
        seconds = now - self._began_at
        if seconds > self._window_seconds:
            self._last_was_kept = self._bytes + size_bytes >= self._bytes_per_second * seconds
            self._began_at, self._bytes = now, 0
        else:
            self._bytes += size_bytes

    def is_kept(self, now: float) -> bool:
        """Whether it was in the last whole window, and is in this one as far as is known."""
        seconds = now - self._began_at
        if seconds > self._window_seconds:
            return self._bytes >= self._bytes_per_second * seconds
        return self._last_was_kept or self._bytes >= self._bytes_per_second * self._window_seconds

    def forgive(self, seconds: float, now: float) -> None:
        """Count a time in which nothing could come as none."""
        self._began_at = min(self._began_at + seconds, now)


@dataclass(slots=True)
class _Offence:
    count: int
    until: float


class Penalties:
    """Whose connections were closed for sending too much: they may come back later each time."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._offences: dict[str, _Offence] = {}

    def punish(self, client_id: str, now: float) -> None:
        """Count an offence."""
        known = self._offences.pop(client_id, None)
        count = known.count + 1 if known is not None and now < known.until + FORGIVEN_AFTER_SECONDS else 1
        seconds = min(FIRST_PENALTY_SECONDS * 2 ** min(count - 1, 16), LONGEST_PENALTY_SECONDS)
        self._offences[client_id] = _Offence(count, now + seconds)
        if len(self._offences) > self._most:
            del self._offences[next(iter(self._offences))]

    def wait_seconds(self, client_id: str, now: float) -> float:
        """Return for how long it is not let in yet; 0 if it is."""
        offence = self._offences.get(client_id)
        return max(offence.until - now, 0.0) if offence is not None else 0.0
