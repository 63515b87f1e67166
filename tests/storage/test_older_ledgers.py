"""A ledger of each older schema, with a farm's history in it: opened by this version it holds what it held."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import Entry, Record, RoundState, SampleRange
from storage.engine import writer_engine
from storage.ledger import SqlLedger
from storage.ledger_identity import identity_of, is_blank
from storage.migrate import NEWEST, current_revision
from tests.storage import records

_BEFORE_0010 = ("DROP TABLE failed_items", "ALTER TABLE tasks DROP COLUMN items_failed")
_BEFORE_0009 = (
    "DROP TABLE credits",
    "ALTER TABLE clients DROP COLUMN team",
    "ALTER TABLE assignments DROP COLUMN team",
    "ALTER TABLE assignments DROP COLUMN flops_per_sample",
    *_BEFORE_0010,
)
_BEFORE_0008 = ("ALTER TABLE clients DROP COLUMN sandbox", *_BEFORE_0009)
_BEFORE_0007 = (
    "ALTER TABLE tasks DROP COLUMN epochs_ended",
    "ALTER TABLE tasks DROP COLUMN epoch_end_error",
    "ALTER TABLE tasks DROP COLUMN artefact_files",
    "ALTER TABLE tasks DROP COLUMN artefact_bytes",
    *_BEFORE_0008,
)
_BEFORE_0006 = (
    "ALTER TABLE tasks DROP COLUMN best_value",
    "ALTER TABLE tasks DROP COLUMN stale_evaluations",
    "ALTER TABLE tasks DROP COLUMN stopped",
    *_BEFORE_0007,
)
_BEFORE_0005 = (
    "ALTER TABLE checkpoints DROP COLUMN inner_state_digest",
    "ALTER TABLE checkpoints DROP COLUMN inner_state_bytes",
    *_BEFORE_0006,
)
_BEFORE_0004 = (
    "DROP INDEX ix_tasks_state",
    "DROP INDEX ix_tasks_created",
    "DROP INDEX ix_assignments_fence",
    *_BEFORE_0005,
)
_BEFORE_0003 = ("ALTER TABLE tasks DROP COLUMN priority_set", *_BEFORE_0004)
STEPS_BACK = {
    "0009": _BEFORE_0010,
    "0008": _BEFORE_0009,
    "0007": _BEFORE_0008,
    "0006": _BEFORE_0007,
    "0005": _BEFORE_0006,
    "0004": _BEFORE_0005,
    "0003": _BEFORE_0004,
    "0002": _BEFORE_0003,
    "0001": ("DROP TABLE identity", *_BEFORE_0003),
}
"""What undoes the migrations after each older schema."""
HISTORY: tuple[Record, ...] = (
    records.client(),
    records.client("c2", delivered=3, failed=1, tags=("gpu",)),
    records.task("t1", version=2, loss=0.25, metrics={"loss": 0.25}, leftover=(SampleRange(0, 5, 9),)),
    records.task("t2", state=TaskState.COMPLETED, finished_at=9.0, submit_token="once"),
    records.round_("t1", 1, state=RoundState.COMMITTED, committed_at=4.0),
    records.round_("t1", 2),
    records.assignment("a1", "t1", round=1, state=AssignmentState.DELIVERED, counted=True, counted_in=1, fence=7),
    records.assignment("a2", "t1", round=2, fence=8),
    records.checkpoint("t1", 1),
    records.checkpoint("t1", 2, optimizer=None, manifest=None),
)
ENTRIES: tuple[Entry, ...] = (
    records.event(),
    records.log(),
    records.metric(float("nan")),
    records.event("again"),
    records.credit(),
)
"""The credit is that of the one assignment that is counted: an upgrade makes it of that."""


async def told(ledger: SqlLedger) -> dict[str, object]:
    """Return all that a ledger says of the history."""
    return {
        "snapshot": await ledger.load(),
        "rounds": await ledger.rounds("t1"),
        "assignments": await ledger.assignments("t1"),
        "checkpoints": await ledger.checkpoints("t1"),
        "events": await ledger.events(),
        "logs": await ledger.logs("t1"),
        "metrics": repr(await ledger.metrics("t1")),
        "needed": await ledger.referenced_digests(),
        "by token": await ledger.task_by_token("once"),
        "usage": await ledger.usage(),
    }


async def older_ledger(path: Path, revision: str) -> dict[str, object]:
    """Write a ledger, undo what later schemas brought, and return what it said before."""
    ledger = await SqlLedger.open(path)
    await ledger.save(HISTORY, ENTRIES)
    before = await told(ledger)
    await ledger.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in STEPS_BACK[revision]:
            connection.execute(statement)
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    return before


@pytest.mark.parametrize("revision", STEPS_BACK)
async def test_all_that_an_older_ledger_holds_is_there_after_the_upgrade(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "ledger.db"
    before = await older_ledger(path, revision)
    ledger = await SqlLedger.open(path)
    assert await told(ledger) == before
    await ledger.close()
    engine = writer_engine(path)
    with engine.begin() as connection:
        assert current_revision(connection) == NEWEST
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    engine.dispose()


@pytest.mark.parametrize("revision", STEPS_BACK)
async def test_an_upgraded_ledger_takes_all_that_a_new_one_takes(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "ledger.db"
    await older_ledger(path, revision)
    ledger = await SqlLedger.open(path)
    task = await ledger.task("t1")
    assert task is not None
    assert task.priority_set is None, "nobody had set one"
    await ledger.save([replace(task, priority_set=9)], [records.event("it went on")])
    again = await ledger.task("t1")
    assert again is not None
    assert again.priority_set == 9
    numbers = [one.seq for one in await ledger.events()]
    assert numbers == sorted(set(numbers)), "no number is used twice"
    assert (await ledger.load()).last_fence == 8, "fences go on after the highest"
    await ledger.close()


async def test_a_ledger_from_before_it_had_a_name_gets_one_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    await older_ledger(path, "0001")
    assert identity_of(path) is None
    assert not is_blank(path), "it has no name, and is no new one"
    starts = []
    for _ in range(3):
        ledger = await SqlLedger.open(path)
        starts.append(ledger.identity)
        await ledger.close()
    assert [one.starts for one in starts] == [1, 2, 3]
    assert len({one.ledger_id for one in starts}) == 1
    assert identity_of(path) == starts[-1]


async def test_a_ledger_with_a_name_keeps_it_through_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    await older_ledger(path, "0002")
    named = identity_of(path)
    assert named is not None
    ledger = await SqlLedger.open(path)
    assert (ledger.identity.ledger_id, ledger.identity.starts) == (named.ledger_id, named.starts + 1)
    await ledger.close()


def test_every_schema_before_the_newest_is_opened_here() -> None:
    """A migration that is added without a ledger of the schema before it fails here."""
    older = {f"{number:04}" for number in range(1, int(NEWEST))}
    assert set(STEPS_BACK) == older


@pytest.mark.parametrize("content", [b"", None])
def test_what_holds_no_table_is_blank(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger.db"
    if content is not None:
        path.write_bytes(content)
    assert is_blank(path)
    assert identity_of(path) is None


def test_what_cannot_be_read_is_no_blank_ledger(tmp_path: Path) -> None:
    """Blobs beside a damaged ledger must not be taken for leftovers of a new one."""
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, and somebody may want it back" * 100)
    assert not is_blank(path)
    assert identity_of(path) is None
