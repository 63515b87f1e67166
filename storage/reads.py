"""The queries of the SQL ledger. Every answer is a record, read in one transaction that sees what is committed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import CompoundSelect, RowMapping, Select, and_, func, select, tuple_, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from coordinator.lifecycle import ACTIVE, ENDED, TaskState
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
    RoundRecord,
    Snapshot,
    TaskRecord,
)
from storage import credit_sums, pruning, references, usage
from storage.errors import DamagedLedger, ledger_error
from storage.mapping import (
    ARTEFACT,
    ARTEFACTS,
    ASSIGNMENTS,
    CHECKPOINTS,
    CLIENTS,
    EVENTS,
    FAILED_ITEMS,
    FAILED_STEP,
    FAILED_STEPS,
    LOGS,
    METRICS,
    OUTPUT,
    OUTPUTS,
    ROUNDS,
    TASKS,
    Mapper,
    artefact_record,
    failed_step_record,
    output_record,
    output_role,
    task_record,
)
from storage.ports.ledger import (
    FEED_LIMIT,
    CreditBy,
    CreditQuery,
    CreditSum,
    History,
    Numbered,
    TaskEnd,
    TaskKey,
    TaskUsage,
)
from storage.tables import HELD_ASSIGNMENT, OPEN_ROUND, SubmissionRow, table_of

T = TypeVar("T")
E = TypeVar("E", bound=Entry)
_Query = Select[Any] | CompoundSelect[Any]
_Make = Callable[[RowMapping], T]

_PARTITION_ROWS: Final = 500
"""Rows turned into records before the event loop gets its turn: about 5 ms."""


_SPECS_AT_ONCE: Final = 8
"""Specifications that are read before the event loop gets its turn: one may name thousands of shards."""
_TASK_AND_SPEC: Final = select(TASKS.table, table_of(SubmissionRow).c.spec).join(
    table_of(SubmissionRow), table_of(SubmissionRow).c.task_id == TASKS.table.c.task_id
)
_FAILED_STEPS: Final = select(FAILED_STEPS.table).where(
    FAILED_STEPS.table.c.role.startswith(FAILED_STEP, autoescape=True)
)
_UNFINISHED: Final = TASKS.table.c.state.in_(sorted(ACTIVE))


def _states_beside(known: Iterable[str]) -> CompoundSelect[Any]:
    """Select the states of tasks that are none of these, by the gaps between them in the index."""
    names, state = sorted(known), TASKS.table.c.state
    gaps = [state < names[0], *(and_(state > a, state < b) for a, b in pairwise(names)), state > names[-1]]
    return union_all(*(select(state).where(gap) for gap in gaps))


_UNKNOWN_STATES: Final = _states_beside(TaskState)
_NEWEST_AT: Final = select(func.max(TASKS.table.c.created_at).label("at")).union_all(
    *(select(func.max(TASKS.table.c.finished_at)).where(TASKS.table.c.state == state) for state in sorted(ENDED))
)
"""The latest times of all tasks, each from the end of an index."""


class Reads:
    """The reading half of the ledger.

    Raises: Unavailable if the disk or another program keeps it from reading; DamagedLedger.
    """

    def __init__(self, engine: AsyncEngine, path: Path) -> None:
        self._readers = engine
        self._path = path

    async def load(self) -> Snapshot:
        """Return what a server needs to go on after a restart.

        Raises: DamagedLedger if a row is no record of this farm's; Unavailable.
        """
        tasks, rounds, held, checkpoints = TASKS.table, ROUNDS.table, ASSIGNMENTS.table, CHECKPOINTS.table
        newest = (  # a later one than the task's version was damaged, and the task fell back
            select(checkpoints.c.task_id, func.max(checkpoints.c.round))
            .join(tasks, tasks.c.task_id == checkpoints.c.task_id)
            .where(_UNFINISHED, checkpoints.c.round <= tasks.c.version)
            .group_by(checkpoints.c.task_id)
        )
        unfinished = _TASK_AND_SPEC.where(_UNFINISHED).order_by(tasks.c.created_at, tasks.c.task_id)
        async with self._session() as session:
            for unknown in (await session.execute(_UNKNOWN_STATES)).scalars():
                TaskState(unknown)  # is none, which must not pass for an end
            return Snapshot(
                tasks=await _all(session, unfinished, task_record, _SPECS_AT_ONCE),
                clients=await _all(session, select(CLIENTS.table).order_by(CLIENTS.table.c.client_id), CLIENTS.record),
                rounds=await _all(session, select(rounds).where(OPEN_ROUND), ROUNDS.record),
                assignments=await _all(
                    session,
                    select(held).where(HELD_ASSIGNMENT).order_by(held.c.task_id, held.c.position),
                    ASSIGNMENTS.record,
                ),
                checkpoints=await _all(
                    session,
                    select(checkpoints).where(tuple_(checkpoints.c.task_id, checkpoints.c.round).in_(newest)),
                    CHECKPOINTS.record,
                ),
                failed_steps=await _all(
                    session,
                    _FAILED_STEPS.join(tasks, tasks.c.task_id == FAILED_STEPS.table.c.task_id).where(_UNFINISHED),
                    failed_step_record,
                ),
                last_fence=(await session.execute(select(func.max(held.c.fence)))).scalar() or 0,
                credits=await _all(session, credit_sums.sums(CreditQuery(CreditBy.CLIENT)), credit_sums.all_of),
                newest_at=max((at for at in (await session.execute(_NEWEST_AT)).scalars() if at), default=0.0),
            )

    async def task_page(self, limit: int, before: TaskKey | None = None) -> list[TaskKey]:
        """Return up to ``limit`` tasks, newest first, of those that come after ``before`` in the list."""
        table = TASKS.table
        query = select(table.c.created_at, table.c.task_id)
        query = query.order_by(table.c.created_at.desc(), table.c.task_id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(table.c.created_at, table.c.task_id) < before)
        return await self._list(query, lambda row: TaskKey(**row))

    async def tasks(self, task_ids: Sequence[str]) -> list[TaskRecord]:
        """Return these tasks, in no order, without unknown ones."""
        async with self._session() as session:
            wanted = _TASK_AND_SPEC.where(TASKS.table.c.task_id.in_(task_ids))
            return list(await _all(session, wanted, task_record, _SPECS_AT_ONCE))

    async def task_counts(self) -> dict[TaskState, int]:
        """Return how many tasks are in each state that one is in."""
        state = TASKS.table.c.state
        query = select(state, func.count().label("tasks")).group_by(state)
        return dict(await self._list(query, lambda row: (TaskState(row["state"]), int(row["tasks"]))))

    async def task_end(self, task_id: str) -> TaskEnd | None:
        """Return the task's state and end, without what was submitted; None if there is no such task."""
        return await self._first(usage.TASK_ENDS.where(TASKS.table.c.task_id == task_id), lambda row: TaskEnd(**row))

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or None."""
        return await self._first(_TASK_AND_SPEC.where(TASKS.table.c.task_id == task_id), task_record)

    async def task_by_token(self, submit_token: str) -> TaskRecord | None:
        """Return the task that was submitted with this token, or None."""
        return await self._first(_TASK_AND_SPEC.where(TASKS.table.c.submit_token == submit_token), task_record)

    async def rounds(self, task_id: str, limit: int = 50) -> list[RoundRecord]:
        """Return the task's newest rounds, newest first."""
        table = ROUNDS.table
        query = select(table).where(table.c.task_id == task_id).order_by(table.c.number.desc()).limit(limit)
        return await self._list(query, ROUNDS.record)

    async def assignments(self, task_id: str, counted_only: bool = False) -> list[AssignmentRecord]:
        """Return the task's assignments in order of round and position; or only those that a round counted."""
        table = ASSIGNMENTS.table
        query = select(table).where(table.c.task_id == task_id).order_by(table.c.round, table.c.position)
        return await self._list(query.where(table.c.counted) if counted_only else query, ASSIGNMENTS.record)

    async def checkpoints(self, task_id: str) -> list[CheckpointRecord]:
        """Return the task's kept checkpoints, oldest first."""
        return await self._list(_checkpoints_of(task_id).order_by(CHECKPOINTS.table.c.round), CHECKPOINTS.record)

    async def checkpoint(self, task_id: str, round: int | None = None) -> CheckpointRecord | None:  # noqa: A002  # the field's name
        """Return the task's checkpoint of that round, or its newest one; None if it is not kept."""
        number = CHECKPOINTS.table.c.round
        query = _checkpoints_of(task_id).order_by(number.desc()).limit(1)
        return await self._first(query if round is None else query.where(number == round), CHECKPOINTS.record)

    async def failed_steps(self, task_id: str) -> list[FailedStepRecord]:
        """Return the steps in which the task's code failed and of which state and batch are kept, by their lines."""
        table = FAILED_STEPS.table
        query = _FAILED_STEPS.where(table.c.task_id == task_id).order_by(table.c.role)
        return await self._list(query, failed_step_record)

    async def artefacts(self, task_id: str) -> list[ArtefactRecord]:
        """Return the files that the ends of the task's epochs left, by epoch and name."""
        table = ARTEFACTS.table
        mine = table.c.role.startswith(ARTEFACT, autoescape=True)
        query = select(table).where(table.c.task_id == task_id, mine)
        found = await self._list(query, lambda row: artefact_record(**row))
        return sorted(found, key=lambda file: (file.epoch, file.name))

    async def outputs(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[OutputRecord]:
        """Return outputs of a map from the part on that has the item ``start``, in order."""
        role, mine = OUTPUTS.table.c.role, OUTPUTS.table.c.task_id == task_id
        first, is_output = output_role(start), role.startswith(OUTPUT, autoescape=True)
        part = select(func.max(role)).where(mine, is_output, role < output_role(start + 1)).scalar_subquery()
        query = select(OUTPUTS.table).where(mine, is_output, role >= func.coalesce(part, first))
        found = await self._list(query.order_by(role).limit(limit), lambda row: output_record(**row))
        return [part for part in found if part.position + part.samples > start]

    async def failed_items(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[FailedItemRecord]:
        """Return the items of a map that have no output, from the item ``start`` on, in order."""
        table = FAILED_ITEMS.table
        query = select(table).where(table.c.task_id == task_id, table.c.position >= start)
        return await self._list(query.order_by(table.c.position).limit(limit), FAILED_ITEMS.record)

    async def events(
        self, task_id: str | None = None, after: int = 0, limit: int = FEED_LIMIT
    ) -> list[Numbered[EventRecord]]:
        """Return events numbered higher than ``after``, oldest first: one task's, or with None the whole farm's."""
        return await self._feed(EVENTS, task_id, after, limit)

    async def logs(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[LogRecord]]:
        """Return the task's log lines numbered higher than ``after``, oldest first."""
        return await self._feed(LOGS, task_id, after, limit)

    async def metrics(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[MetricRecord]]:
        """Return the task's metrics numbered higher than ``after``, oldest first."""
        return await self._feed(METRICS, task_id, after, limit)

    async def credit(self, query: CreditQuery) -> list[CreditSum]:
        """Return the sums of a query, the most FLOPs first."""
        return credit_sums.ranked(await self._list(credit_sums.sums(query), credit_sums.sum_of))

    async def referenced_digests(self, ended_since: float | None = None) -> set[str]:
        """Return the names of all blobs that something kept still needs (``storage.references``)."""
        since = references.NEVER if ended_since is None else ended_since
        query = references.NEEDED.params({references.ENDED_SINCE: since})
        return set(await self._list(query, lambda row: str(row["digest"])))

    async def beyond(self, history: History, task_id: str, keep: int) -> int | None:
        """Return up to which number a task's history is too long, where the newest ``keep`` rows stay; None if not."""
        return await self._number(pruning.beyond(history, task_id, keep))

    async def next_step(self, history: History, task_id: str, upto: int) -> int | None:
        """Return up to which number one transaction may remove; None if nothing is left."""
        return await self._number(pruning.next_step(history, task_id, upto))

    async def count_upto(self, history: History, task_id: str, upto: int) -> int:
        """Count the rows of a task's history up to that number."""
        return await self._number(pruning.count_upto(history, task_id, upto)) or 0

    async def task_ends(self) -> list[TaskEnd]:
        """Return each task's state and end."""
        return await self._list(usage.TASK_ENDS, lambda row: TaskEnd(**row))

    async def usage(self) -> list[TaskUsage]:
        """Return what each task takes, the largest first. Reads an index of each table from end to end."""
        sizes = dict(await self._list(usage.BLOB_BYTES, _amount))
        rows: Counter[str] = Counter()
        for query in usage.ROWS:
            rows.update(dict(await self._list(query, _amount)))
        tasks = {end.task_id for end in await self.task_ends()}
        found = [TaskUsage(task_id, sizes.get(task_id, 0), rows[task_id]) for task_id in tasks]
        return sorted(found, key=lambda one: (one.blob_bytes, one.rows, one.task_id), reverse=True)

    async def _number(self, query: _Query) -> int | None:
        async with self._session() as session:
            number: int | None = (await session.execute(query)).scalar()
            return number

    async def _feed(self, mapper: Mapper[E], task_id: str | None, after: int, limit: int) -> list[Numbered[E]]:
        table = mapper.table
        query = select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit)
        if task_id is not None:
            query = query.where(table.c.task_id == task_id)
        return await self._list(query, lambda row: Numbered(row["seq"], mapper.record(row)))

    async def _list(self, query: _Query, make: _Make[T]) -> list[T]:
        async with self._session() as session:
            return list(await _all(session, query, make))

    async def _first(self, query: _Query, make: _Make[T]) -> T | None:
        async with self._session() as session:
            found = await _all(session, query, make)
            return found[0] if found else None

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncSession]:
        try:
            async with AsyncSession(self._readers) as session:
                yield session
        except DBAPIError as error:
            raise ledger_error(self._path, error) from error
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise DamagedLedger(
                f"{self._path} holds a record that can't be read ({type(error).__name__}); restore it from a backup"
            ) from error


def _amount(row: RowMapping) -> tuple[str, int]:
    return row["task_id"], int(row["amount"] or 0)


def _checkpoints_of(task_id: str) -> Select[Any]:
    """Select the task's checkpoints, without those beyond its version: they were damaged, and the task fell back."""
    table, tasks = CHECKPOINTS.table, TASKS.table
    version = select(tasks.c.version).where(tasks.c.task_id == task_id).scalar_subquery()
    return select(table).where(table.c.task_id == task_id, table.c.round <= func.coalesce(version, table.c.round))


async def _all(session: AsyncSession, query: _Query, make: _Make[T], at_once: int = _PARTITION_ROWS) -> tuple[T, ...]:
    """Return a record for each row; between partitions the event loop gets its turn."""
    found: list[T] = []
    result = await session.execute(query)
    for partition in result.mappings().partitions(at_once):
        found.extend(make(row) for row in partition)
        await asyncio.sleep(0)
    return tuple(found)
