"""Logs and metrics: one that the ledger refuses costs no other, and a short disk makes them wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.lifecycle import TaskState
from coordinator.records import Entry, LogRecord, MetricRecord, TaskRecord
from farm_server.clients.entry_buffer import EntryBuffer
from protocol.assignments import AssignmentProgress, LogLine, MetricPoint, Phase, Progress
from storage.errors import BadRecord
from storage.ledger import SqlLedger

PLACE = cast("Any", SimpleNamespace(task_id="t1", round=3))
PEER = cast("Any", SimpleNamespace(client_id="c1", name="one"))


class RefusingLedger:
    """Refuses a transaction with a step of 2**63 in it, as SQLite does."""

    def __init__(self) -> None:
        self.saved: list[Entry] = []

    failure = None

    def submit(self, records: Any, entries: Any = (), *, insist: bool = False) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        if any(isinstance(e, MetricRecord) and e.step >= 2**63 for e in entries):
            done.set_exception(BadRecord("an integer too large"))
        else:
            self.saved += entries
            done.set_result(None)
        return done


def progress(*points: MetricPoint, lines: int = 0) -> Progress:
    logs = tuple(LogLine(text=f"line {n}") for n in range(lines))
    held = AssignmentProgress(assignment_id="a1", fence=1, phase=Phase.COMPUTING)
    return Progress(progress=held, metrics=points, logs=logs)


def odd_point() -> MetricPoint:
    """A point that no message of this version lets through, but which an entry may hold all the same."""
    return MetricPoint.model_construct(name="odd", value=1.0, step=2**63)


async def test_one_entry_that_is_refused_costs_no_other() -> None:
    ledger, heard = RefusingLedger(), []
    buffer = EntryBuffer(ledger, heard.extend, lambda: None)
    message = progress(MetricPoint(name="loss", value=1.0), lines=128)
    buffer.add(PEER, PLACE, message, 0.0)
    buffer.add(PEER, PLACE, progress().model_copy(update={"metrics": (odd_point(),)}), 0.0)
    buffer.add(PEER, PLACE, message, 0.0)
    buffer.flush(0.0)
    await asyncio.sleep(0.01)
    assert sum(isinstance(entry, LogRecord) for entry in ledger.saved) == 256
    assert [entry.name for entry in ledger.saved if isinstance(entry, MetricRecord)] == ["loss", "loss"]
    assert heard == ledger.saved


async def test_the_real_ledger_keeps_the_others_too(tmp_path) -> None:
    ledger = await SqlLedger.open(tmp_path / "farm.db")
    buffer = EntryBuffer(ledger, lambda _: None, lambda: None)
    buffer.add(PEER, PLACE, progress(lines=50), 0.0)
    buffer.add(PEER, PLACE, progress().model_copy(update={"metrics": (odd_point(),)}), 0.0)
    buffer.flush(0.0)
    await asyncio.sleep(0)  # the refusal is heard of here, and each entry is submitted by itself
    await ledger.save(())
    await asyncio.sleep(0)
    await ledger.close()
    ledger = await SqlLedger.open(tmp_path / "farm.db")
    assert len(await ledger.logs("t1")) == 50
    assert await ledger.metrics("t1") == []
    await ledger.close()


async def test_entries_wait_while_the_disk_is_short() -> None:
    ledger, short = RefusingLedger(), ["no room"]
    buffer = EntryBuffer(ledger, lambda _: None, lambda: short[0] if short else None)
    buffer.add(PEER, PLACE, progress(lines=10), 0.0)
    buffer.flush(0.0)
    assert ledger.saved == []
    short.clear()
    buffer.flush(0.25)
    assert len(ledger.saved) == 10


@pytest.mark.parametrize(("state", "is_written"), [(TaskState.COMPLETED, True), (TaskState.RUNNING, False)])
async def test_what_was_printed_is_written_before_the_end_of_its_task(state: TaskState, is_written: bool) -> None:
    ledger = RefusingLedger()
    buffer = EntryBuffer(ledger, lambda _: None, lambda: None)
    record = TaskRecord("t1", cast("Any", None), state, 0.0)
    buffer.add(PEER, PLACE, progress(lines=1), 0.0)
    buffer.flush(0.0)  # still under way when the end comes
    buffer.add(PEER, PLACE, progress(lines=1), 0.0)
    buffer.flush_before([cast("Any", SimpleNamespace()), record])
    assert len(ledger.saved) == 1 + is_written
    buffer.flush_before([record])
    assert len(ledger.saved) == 1 + is_written, "once"


async def test_a_short_disk_lets_lines_wait_at_a_tasks_end_too() -> None:
    ledger = RefusingLedger()
    buffer = EntryBuffer(ledger, lambda _: None, lambda: "the disk is short")
    buffer.add(PEER, PLACE, progress(lines=1), 0.0)
    buffer.flush_before([TaskRecord("t1", cast("Any", None), TaskState.FAILED, 0.0)])
    assert ledger.saved == []


async def test_of_a_removed_task_nothing_is_written_any_more() -> None:
    ledger = RefusingLedger()
    buffer = EntryBuffer(ledger, lambda _: None, lambda: None)
    other = cast("Any", SimpleNamespace(task_id="t2", round=0))
    buffer.add(PEER, PLACE, progress(lines=2), 0.0)
    buffer.add(PEER, other, progress(lines=1), 0.0)
    buffer.forget("t1")
    buffer.add(PEER, PLACE, progress(lines=4), 0.0)
    buffer.flush(0.0)
    assert [entry.task_id for entry in ledger.saved if isinstance(entry, LogRecord)] == ["t2"]
