"""One call of ``Coordinator.handle``: the moment, the farm, and the answer that is being put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.commands import Command, Save, Send
from coordinator.durability import Volatile
from coordinator.lifecycle import AssignmentState, TaskState, move_assignment, move_task
from coordinator.records import (
    AssignmentRecord,
    Entry,
    EventRecord,
    LogRecord,
    MetricRecord,
    Record,
    RoundRecord,
    RoundState,
    TaskRecord,
)
from coordinator.settings import CoordinatorSettings
from coordinator.state import ClientState, Farm, Lease, TaskRun
from protocol.messages import Message


@dataclass(slots=True)
class Turn:
    """Rules read ``farm``, ``settings`` and ``now``, change the farm, and say what must follow."""

    farm: Farm
    settings: CoordinatorSettings
    new_id: Callable[[], str]
    draw: Callable[[], float]
    now: float
    _records: dict[tuple[type, object], Record] = field(default_factory=dict)
    _entries: list[Entry] = field(default_factory=list)
    _commands: list[Command] = field(default_factory=list)

    def save(self, record: Record) -> None:
        """Keep a record; of several versions in one turn the last one is written."""
        self._records[type(record), _key(record)] = record

    def release(self, records: Mapping[tuple[type, object], Record], entries: Iterable[Entry]) -> None:
        """Save what was held back of a task; what this turn saved already is newer."""
        self._records = {**records, **self._records}
        self._entries = [*entries, *self._entries]

    def release_uncounted(self, records: Mapping[tuple[type, object], Record], entries: Iterable[Entry]) -> None:
        """Save what is left of rounds that were rolled back: that they were tried, and what the code printed."""
        for key, record in records.items():
            if isinstance(record, AssignmentRecord):
                self._records.setdefault(key, replace(record, counted=False, counted_in=None))
            elif isinstance(record, RoundRecord):
                self._records.setdefault(key, replace(record, state=RoundState.ABANDONED))
        self._entries = [*(entry for entry in entries if isinstance(entry, LogRecord)), *self._entries]

    def do(self, command: Command) -> None:
        """Ask for something, after what was saved in this turn is durable."""
        self._commands.append(command)

    def send(self, client: ClientState, message: Message, *, holds_weights: bool = False) -> None:
        """Send a message to the client's present connection; ``holds_weights`` as in ``Send``."""
        if client.online:
            self.do(Send(client.client_id, client.incarnation, message, holds_weights))

    def note(
        self,
        kind: str,
        message: str,
        run: TaskRun | None = None,
        client: ClientState | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an event for people and audits."""
        self._entries.append(
            EventRecord(
                at=self.now,
                kind=kind,
                message=message,
                task_id=run.task_id if run else None,
                client_id=client.client_id if client else None,
                round=run.record.version if run else None,
                data=data or {},
            )
        )

    def log(self, run: TaskRun, client: ClientState, text: str) -> None:
        """Append lines to what the researcher sees on `farm logs`, as the client's own (stream ``error``)."""
        self._entries += [
            LogRecord(self.now, run.task_id, client.client_id, client.record.name, run.record.version, "error", line)
            for line in text.splitlines()
        ]

    def measure(self, run: TaskRun, round_number: int, source: str, values: Mapping[str, float]) -> None:
        """Append metrics of a round; ``source`` is train or eval."""
        self._entries += [
            MetricRecord(self.now, run.task_id, round_number, round_number, name, value, source)
            for name, value in sorted(values.items())
        ]

    def move(self, run: TaskRun, to: TaskState, message: str, **changes: object) -> TaskRecord:
        """Take a task along an edge of its table, save it, and append the event. Raises: IllegalTransition."""
        move_task(run.task_id, run.record.state, to)
        record = run.update(state=to, reason=message, **changes)
        self.save(record)
        self.note(f"task_{to}", message, run)
        return record

    def move_lease(self, lease: Lease, to: AssignmentState, **changes: object) -> AssignmentRecord:
        """Take a held assignment along an edge of its table. Raises: IllegalTransition."""
        record = lease.record
        state = move_assignment(record.assignment_id, record.state, to)
        lease.record = replace(record, state=state, **changes)  # type: ignore[arg-type]  # fields of the record
        return lease.record

    def _hold_back(self, run: TaskRun, volatile: Volatile) -> None:
        """What concerns rounds that are not durable must not be either: they become so together."""
        mine = {key: record for key, record in self._records.items() if _task_of(record) == run.task_id}
        volatile.hold(mine, [entry for entry in self._entries if _task_of(entry) == run.task_id])
        self._records = {key: record for key, record in self._records.items() if key not in mine}
        self._entries = [entry for entry in self._entries if _task_of(entry) != run.task_id]

    def answer(self) -> list[Command]:
        """Return the commands: one ``Save`` first, if anything is to be kept now."""
        for run in self.farm.tasks.values():
            if run.volatile is not None:
                self._hold_back(run, run.volatile)
        if not self._records and not self._entries:
            return self._commands
        return [Save(tuple(self._records.values()), tuple(self._entries)), *self._commands]


def _task_of(item: Record | Entry) -> str | None:
    return getattr(item, "task_id", None)


def _key(record: Record) -> object:
    for names in (("assignment_id",), ("task_id", "number"), ("task_id", "round"), ("task_id",), ("client_id",)):
        if all(hasattr(record, name) for name in names):
            return tuple(getattr(record, name) for name in names)
    raise TypeError(f"{type(record).__name__} has no key")
