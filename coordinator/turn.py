"""One call of ``Coordinator.handle``: the moment, the farm, and the answer that is being put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from coordinator.commands import Command, Save, Send
from coordinator.durability import VolatileVersion
from coordinator.events import AssignmentFailed, ResultArrived
from coordinator.farm import FarmState
from coordinator.in_flight import Lease
from coordinator.lifecycle import AssignmentState, TaskState, move_assignment, move_task
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    ClientRecord,
    CreditEntry,
    Entry,
    EventRecord,
    FailedItemRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    OutputRecord,
    Record,
    RemovedClient,
    RoundRecord,
    RoundState,
    TaskRecord,
)
from coordinator.settings import CoordinatorSettings
from coordinator.state import ClientState, TaskRun
from protocol.messages import Message


@dataclass(slots=True)
class Turn:
    """Rules read ``farm``, ``settings`` and ``now``, change the farm, and say what must follow."""

    farm: FarmState
    settings: CoordinatorSettings
    new_id: Callable[[], str]
    draw: Callable[[], float]
    now: float
    touched: dict[str, TaskRun] = field(default_factory=dict)
    """The tasks that this turn is about."""
    cause: str = ""
    """The name of the event, for reports."""
    stake: ResultArrived | AssignmentFailed | None = None
    """What a client waits to hear of: if the rule breaks, it is told that this does not count."""
    _records: dict[tuple[type, object], Record] = field(default_factory=dict)
    _released: dict[tuple[type, object], Record] = field(default_factory=dict)
    """Saved too, unless this turn has anything newer: what was held back of a task until now."""
    _entries: list[Entry] = field(default_factory=list)
    _released_entries: list[Entry] = field(default_factory=list)
    _commands: list[Command] = field(default_factory=list)

    def apart(self) -> Turn:
        """Return an empty turn of the same moment; ``take_in`` adds its answer, and without that it leaves none."""
        return Turn(self.farm, self.settings, self.new_id, self.draw, self.now, self.touched, self.cause)

    def take_in(self, part: Turn) -> None:
        """Add all that a part of this turn decided."""
        self._records |= part._records
        self._released |= part._released
        self._entries += part._entries
        self._released_entries += part._released_entries
        self._commands += part._commands

    def settle(self, run: TaskRun) -> None:
        """End this part of a turn, which is about one task: what the task is now is what a later part goes back to."""
        mine = (r for r in self._records.values() if isinstance(r, AssignmentRecord) and r.task_id == run.task_id)
        self.farm.leases.keep({record.assignment_id: record for record in mine})
        run.settle()
        if run.volatile is not None:
            self._hold_back(run, run.volatile.newest)

    def put_at_stake(self, event: ResultArrived | AssignmentFailed) -> None:
        """Note what a client waits for an answer to."""
        if self.stake is None:
            self.stake = event

    def drafts(self) -> Iterable[Command]:
        """Return what would be done if the turn ended now."""
        return self._commands

    def save(self, record: Record) -> None:
        """Keep a record; of several versions in one turn the last one is written."""
        self._records[type(record), _KEYS[type(record)](record)] = record

    def release(self, records: Mapping[tuple[type, object], Record], entries: Iterable[Entry]) -> None:
        """Save what was held back of a task; what this turn saves itself is newer."""
        self._released |= records
        self._released_entries += entries

    def release_record(self, record: Record) -> None:
        """Save a record now, although the task has versions that are not durable."""
        self._released[type(record), _KEYS[type(record)](record)] = record

    def release_uncounted(self, records: Mapping[tuple[type, object], Record], entries: Iterable[Entry]) -> None:
        """Save what is left of rounds that were rolled back: that they were tried, and what the code printed."""
        for key, record in records.items():
            if isinstance(record, AssignmentRecord):
                self._released[key] = replace(record, counted=False, counted_in=None)
            elif isinstance(record, RoundRecord):
                self._released[key] = replace(record, state=RoundState.ABANDONED)
        self._released_entries += [entry for entry in entries if isinstance(entry, LogRecord)]

    def do(self, command: Command) -> None:
        """Ask for something, after what was saved in this turn is durable."""
        self._commands.append(command)

    def send(self, client: ClientState, message: Message, *, holds_weights: bool = False) -> None:
        """Send a message to the client's present connection; ``holds_weights`` as in ``Send``."""
        if client.online:
            self.do(Send(client.client_id, client.incarnation, message, holds_weights))

    def send_to(self, client_id: str, message: Message) -> None:
        """Send a message to who did something for a task once; a client that was removed since then gets none."""
        if (client := self.farm.clients.get(client_id)) is not None:
            self.send(client, message)

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

    def credit(self, entry: CreditEntry) -> None:
        """Add to the books what a counted assignment is worth, or take it back."""
        self._entries.append(entry)

    def move(self, run: TaskRun, to: TaskState, message: str, **changes: object) -> TaskRecord:
        """Take a task along an edge of its table, save it, and append the event. Raises: IllegalTransition."""
        move_task(run.task_id, run.record.state, to)
        record = run.update(state=to, reason=message, **changes)
        self.farm.sort_in(run)
        self.touched[run.task_id] = run
        self.save(record)
        self.note(f"task_{to}", message, run)
        return record

    def move_lease(self, lease: Lease, to: AssignmentState, **changes: object) -> AssignmentRecord:
        """Take a held assignment along an edge of its table. Raises: IllegalTransition."""
        record = lease.record
        state = move_assignment(record.assignment_id, record.state, to)
        lease.record = replace(record, state=state, **changes)  # type: ignore[arg-type]  # fields of the record
        return lease.record

    def _hold_back(self, run: TaskRun, version: VolatileVersion) -> None:
        """What follows a commit must not be durable before its version is."""
        mine = {key: record for key, record in self._records.items() if _task_of(record) == run.task_id}
        version.hold(mine, [entry for entry in self._entries if _task_of(entry) == run.task_id])
        self._records = {key: record for key, record in self._records.items() if key not in mine}
        self._entries = [entry for entry in self._entries if _task_of(entry) != run.task_id]

    def answer(self) -> list[Command]:
        """Return the commands: one ``Save`` first, if anything is to be kept now."""
        records, entries = {**self._released, **self._records}, (*self._released_entries, *self._entries)
        if not records and not entries:
            return self._commands
        return [Save(tuple(records.values()), entries), *self._commands]


def _task_of(item: Record | Entry) -> str | None:
    return getattr(item, "task_id", None)


_KEYS: Final[Mapping[type, Callable[[Any], object]]] = MappingProxyType(
    {
        AssignmentRecord: attrgetter("assignment_id"),
        RoundRecord: attrgetter("task_id", "number"),
        CheckpointRecord: attrgetter("task_id", "round"),
        FailedStepRecord: attrgetter("task_id", "line"),
        ArtefactRecord: attrgetter("task_id", "epoch", "name"),
        OutputRecord: attrgetter("task_id", "position"),
        FailedItemRecord: attrgetter("task_id", "position"),
        TaskRecord: attrgetter("task_id"),
        ClientRecord: attrgetter("client_id"),
        RemovedClient: attrgetter("client_id"),
    }
)
"""What identifies a record of each kind."""
