"""A ledger in memory: for tests, and for programs that embed the coordinator and keep its facts in another way."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from coordinator.lifecycle import TaskState
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    Entry,
    EventRecord,
    FailedItemRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    OutputRecord,
    Record,
    RoundRecord,
    Snapshot,
    TaskRecord,
)
from protocol.errors import FarmError, Unavailable
from storage import credit_sums
from storage.memory_facts import MemoryFacts
from storage.ports.ledger import (
    FEED_LIMIT,
    CreditQuery,
    CreditSum,
    History,
    LedgerIdentity,
    Numbered,
    TaskEnd,
    TaskKey,
    TaskUsage,
)


class MemoryLedger:
    """A ``Ledger``. ``facts`` outlive it: give them to another one, and that is a restart.

    Nothing refuses in memory, unless it is told to: ``refuse`` shows what a farm does while its disk does.
    """

    def __init__(self, facts: MemoryFacts | None = None, starts: int = 1) -> None:
        self.facts = facts if facts is not None else MemoryFacts()
        self.identity = LedgerIdentity("memory", starts)
        self.failure: str | None = None
        self._refusal: str | None = None
        self._waiting: deque[tuple[list[Record], list[Entry], asyncio.Future[None]]] = deque()
        self._closed = False

    def refuse(self, why: str) -> None:
        """Take nothing from now on, as a full disk would."""
        self._refusal = why

    def accept(self) -> None:
        """Take what waits, and all that comes."""
        self._refusal = self.failure = None
        while self._waiting:
            self._write(*self._waiting.popleft())

    def submit(
        self, records: Iterable[Record], entries: Iterable[Entry] = (), *, insist: bool = False
    ) -> asyncio.Future[None]:
        """Save at once, or keep for later what insists."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            done.set_exception(Unavailable("the ledger is closed; start the server again"))
        elif self._refusal is None:
            self._write(list(records), list(entries), done)
        elif insist:
            self.failure = self._refusal
            self._waiting.append((list(records), list(entries), done))
        else:
            done.set_exception(Unavailable(self._refusal))
        return done

    def _write(self, records: list[Record], entries: list[Entry], done: asyncio.Future[None]) -> None:
        refused: FarmError | None = None
        try:
            self.facts.apply(records, entries)
        except FarmError as error:
            refused = error
        if done.done():
            return
        if refused is None:
            done.set_result(None)
        else:
            done.set_exception(refused)

    async def save(self, records: Iterable[Record], entries: Iterable[Entry] = ()) -> None:
        """Save, or raise what refuses it."""
        await self.submit(records, entries)

    async def drop_checkpoints(self, task_id: str, rounds: Iterable[int]) -> None:
        """Drop these checkpoints."""
        await self.save(())
        for number in rounds:
            self.facts.checkpoints.pop((task_id, number), None)

    async def prune(self, history: History, task_id: str, upto: int) -> int:
        """Remove a task's history up to that number; return how many rows that were."""
        await self.save(())
        rows = await self.count_upto(history, task_id, upto)
        self.facts.prune(history, task_id, upto)
        return rows

    async def remove_task(self, task_id: str) -> None:
        """Remove all that is recorded of a task."""
        await self.save(())
        self.facts.remove_task(task_id)

    async def close(self) -> None:
        """Take nothing more; what still waits is refused."""
        self._closed = True
        while self._waiting:
            *_, done = self._waiting.popleft()
            if not done.done():
                done.set_exception(Unavailable(self._refusal or "the ledger is closed"))

    async def load(self) -> Snapshot:
        """Return what a server needs to go on after a restart."""
        return self.facts.snapshot()

    async def task_page(self, limit: int, before: TaskKey | None = None) -> list[TaskKey]:
        """Return up to ``limit`` tasks, newest first, of those that come after ``before`` in the list."""
        keys = sorted((TaskKey(task.created_at, task.task_id) for task in self.facts.tasks.values()), reverse=True)
        return [key for key in keys if before is None or key < before][:limit]

    async def tasks(self, task_ids: Sequence[str]) -> list[TaskRecord]:
        """Return these tasks, in no order, without unknown ones."""
        return [self.facts.tasks[task_id] for task_id in set(task_ids) & self.facts.tasks.keys()]

    async def task_counts(self) -> dict[TaskState, int]:
        """Return how many tasks are in each state that one is in."""
        return dict(Counter(task.state for task in self.facts.tasks.values()))

    async def task_end(self, task_id: str) -> TaskEnd | None:
        """Return the task's state and end; None if there is no such task."""
        task = self.facts.tasks.get(task_id)
        return None if task is None else TaskEnd(task_id, task.state, task.finished_at)

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return the task."""
        return self.facts.tasks.get(task_id)

    async def task_by_token(self, submit_token: str) -> TaskRecord | None:
        """Return the task that was submitted with this token."""
        return next((task for task in self.facts.tasks.values() if task.spec.submit_token == submit_token), None)

    async def rounds(self, task_id: str, limit: int = 50) -> list[RoundRecord]:
        """Return the task's newest rounds, newest first."""
        mine = [one for one in self.facts.rounds.values() if one.task_id == task_id]
        return sorted(mine, key=lambda one: -one.number)[:limit]

    async def assignments(self, task_id: str, counted_only: bool = False) -> list[AssignmentRecord]:
        """Return the task's assignments by round and position."""
        mine = [one for one in self.facts.assignments.values() if one.task_id == task_id]
        return sorted((a for a in mine if a.counted or not counted_only), key=lambda a: (a.round, a.position))

    async def checkpoints(self, task_id: str) -> list[CheckpointRecord]:
        """Return the task's kept checkpoints, oldest first."""
        return self.facts.checkpoints_of(task_id)

    async def checkpoint(self, task_id: str, round: int | None = None) -> CheckpointRecord | None:  # noqa: A002  # the field's name
        """Return the task's checkpoint of that round, or its newest one."""
        mine = [c for c in self.facts.checkpoints_of(task_id) if round in (None, c.round)]
        return mine[-1] if mine else None

    async def failed_steps(self, task_id: str) -> list[FailedStepRecord]:
        """Return the task's failed steps, by their lines."""
        return self.facts.failed_steps_of(task_id)

    async def artefacts(self, task_id: str) -> list[ArtefactRecord]:
        """Return the task's artefacts, by epoch and name."""
        return self.facts.artefacts_of(task_id)

    async def outputs(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[OutputRecord]:
        """Return outputs of a map from the part on that has the item ``start``, in order."""
        return self.facts.outputs_of(task_id, start)[:limit]

    async def failed_items(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[FailedItemRecord]:
        """Return the items of a map that failed, from the item ``start`` on."""
        return self.facts.failed_items_of(task_id, start)[:limit]

    async def events(
        self, task_id: str | None = None, after: int = 0, limit: int = FEED_LIMIT
    ) -> list[Numbered[EventRecord]]:
        """Return events numbered higher than ``after``, oldest first."""
        return self._feed(EventRecord, task_id, after, limit)

    async def logs(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[LogRecord]]:
        """Return log lines numbered higher than ``after``, oldest first."""
        return self._feed(LogRecord, task_id, after, limit)

    async def metrics(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[MetricRecord]]:
        """Return metrics numbered higher than ``after``, oldest first."""
        return self._feed(MetricRecord, task_id, after, limit)

    def _feed(self, kind: type[Entry], task_id: str | None, after: int, limit: int) -> list[Numbered[Any]]:
        later = (one for one in self.facts.feeds[kind] if one.seq > after)
        return [one for one in later if task_id in (None, one.entry.task_id)][:limit]

    async def credit(self, query: CreditQuery) -> list[CreditSum]:
        """Return the sums of a query, the most FLOPs first."""
        return credit_sums.ranked(credit_sums.sum_up(self.facts.credits.values(), query))

    async def referenced_digests(self, ended_since: float | None = None) -> set[str]:
        """Return the names of all blobs that something kept still needs."""
        return self.facts.referenced_digests(ended_since)

    async def beyond(self, history: History, task_id: str, keep: int) -> int | None:
        """Return up to which number a task's history is too long, where the newest ``keep`` rows stay."""
        numbers = self.facts.numbers(history, task_id)
        return numbers[-keep - 1] if len(numbers) > keep else None

    async def count_upto(self, history: History, task_id: str, upto: int) -> int:
        """Count the rows of a task's history up to that number."""
        return sum(number <= upto for number in self.facts.numbers(history, task_id))

    async def task_ends(self) -> list[TaskEnd]:
        """Return each task's state and end."""
        return [TaskEnd(task.task_id, task.state, task.finished_at) for task in self.facts.tasks.values()]

    async def usage(self) -> list[TaskUsage]:
        """Return what each task takes, the largest first."""
        found = [self.facts.usage(task_id) for task_id in self.facts.tasks]
        return sorted(found, key=lambda one: (one.blob_bytes, one.rows, one.task_id), reverse=True)
