"""A task's history goes oldest first, in steps, and a removed task leaves nothing, while others keep all of theirs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.records import EventRecord, LogRecord, MetricRecord
from storage import pruning
from storage.ledger import SqlLedger
from storage.ports.ledger import History
from tests.storage import records as a

TASKS = ("t1", "t2")


@pytest.fixture
async def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pruning, "STEP_ROWS", 7)
    opened = await SqlLedger.open(tmp_path / "farm.db")
    for task in TASKS:
        await opened.save([a.task(task_id=task), a.checkpoint(task_id=task)])
        for number in range(20):
            entries = (
                LogRecord(float(number), task, "c", "c", number, "stdout", f"line {number}"),
                MetricRecord(float(number), task, number, number, "loss", 1.0, "train"),
                EventRecord(float(number), "round_committed", "", task),
            )
            assignments = [a.assignment(f"{task}-{number}-{part}", task, round=number) for part in range(3)]
            await opened.save([a.round_(task, number), *assignments], entries)
    yield opened
    await opened.close()


def rows(path: Path) -> Counter[tuple[str, str]]:
    """Count the rows of each table and task."""
    counts: Counter[tuple[str, str]] = Counter()
    with closing(sqlite3.connect(path)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
            if "task_id" in columns:
                for task, count in connection.execute(f"SELECT task_id, count(*) FROM {table} GROUP BY task_id"):
                    counts[table, task] = count
    return counts


@pytest.mark.parametrize("history", [History.LOGS, History.METRICS, History.EVENTS])
@pytest.mark.parametrize("keep", [0, 1, 13, 19, 20, 1000])
async def test_the_newest_stay(ledger: SqlLedger, tmp_path: Path, history: History, keep: int) -> None:
    before = rows(tmp_path / "farm.db")
    upto = await ledger.beyond(history, "t1", keep)
    gone = 0 if upto is None else await ledger.prune(history, "t1", upto)
    assert gone == max(20 - keep, 0)
    assert rows(tmp_path / "farm.db") == before - Counter({(history.value, "t1"): gone})
    feed = {History.LOGS: ledger.logs, History.METRICS: ledger.metrics, History.EVENTS: ledger.events}[history]
    assert [entry.entry.at for entry in await feed("t1")] == [float(n) for n in range(20)][20 - min(keep, 20) :]


async def test_a_removed_task_leaves_nothing_and_others_lose_nothing(ledger: SqlLedger, tmp_path: Path) -> None:
    before = rows(tmp_path / "farm.db")
    await ledger.remove_task("t1")
    assert rows(tmp_path / "farm.db") == Counter({key: n for key, n in before.items() if key[1] == "t2"})
    assert [task.task_id for task in (await ledger.load()).tasks] == ["t2"]
    await ledger.remove_task("t1")  # once more is harmless


async def test_what_each_task_takes_is_told_the_largest_first(ledger: SqlLedger) -> None:
    upto = await ledger.beyond(History.LOGS, "t1", 5)
    assert upto is not None
    await ledger.prune(History.LOGS, "t1", upto)
    usage = await ledger.usage()
    assert [(one.task_id, one.rows) for one in usage] == [("t2", 20 * 3 + 60), ("t1", 20 * 3 + 60 - 15)]
    assert usage[0].blob_bytes == usage[1].blob_bytes > 0
