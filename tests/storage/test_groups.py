"""Group commit changes nothing but the time: changes written together leave what they would leave one by one."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from coordinator.lifecycle import ENDED, TaskState
from coordinator.records import Record
from storage.engine import writer_engine
from storage.ports.ledger import History
from storage.pruning import Pruned
from storage.transaction import Change, StoredSpecs, write_changes
from tests.storage import records as a

_ids = st.sampled_from(["t1", "t2"])
_numbers = st.integers(0, 3)
_records: st.SearchStrategy[Record] = st.one_of(
    st.builds(lambda name, version, state: a.task(name, version=version, state=state), _ids, _numbers,
              st.sampled_from([TaskState.RUNNING, TaskState.COMPLETED])),
    st.builds(lambda name, tags: a.client(name, tags=tags), _ids, st.lists(st.text("ab"), max_size=2).map(tuple)),
    st.builds(lambda name, number, samples: a.round_(name, number, samples=samples), _ids, _numbers, _numbers),
    st.builds(lambda name, number: a.assignment(f"{name}/{number}", name, round=number), _ids, _numbers),
    st.builds(lambda name, number, epoch: a.checkpoint(name, number, epoch=epoch), _ids, _numbers, _numbers),
)  # fmt: skip
_entries = st.builds(a.event, st.text(max_size=3), st.none() | _ids) | st.builds(a.log, st.text(max_size=3), _ids)
_saves = st.builds(
    lambda records, entries: Change(records=tuple(records), entries=tuple(entries)),
    st.lists(_records, max_size=4),
    st.lists(_entries, max_size=3),
)
_removals = st.one_of(
    st.builds(lambda name, number: Change(dropped=((name, number),)), _ids, _numbers),
    st.builds(lambda name: Change(removed=(name,)), _ids),
    st.builds(lambda name: Change(removed_clients=(name,)), _ids),
    st.builds(lambda which, name, upto: Change(pruned=(Pruned(which, name, upto),)), st.sampled_from(History), _ids,
              _numbers),
)  # fmt: skip
_changes = st.lists(_saves | _removals, max_size=12)


class Book:
    """A ledger's file of its own, and all of its rows."""

    def __init__(self, folder: Path, name: str, blank: Path) -> None:
        self._path = folder / f"{name}.db"
        shutil.copy(blank, self._path)
        self.engine: Engine = writer_engine(self._path)
        self._stored = StoredSpecs()

    def write(self, group: Sequence[Change]) -> None:
        with self.engine.begin() as connection:
            write_changes(connection, group, self._stored)
        self._stored.committed(group)

    def rows(self) -> dict[str, list[Any]]:
        with closing(sqlite3.connect(self._path)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names}


def groups_of(changes: Sequence[Change], cuts: Sequence[bool]) -> list[list[Change]]:
    """Cut as the writer does: wherever it likes, and always behind a change that removes."""
    groups: list[list[Change]] = [[]]
    for change, cut in zip(changes, cuts, strict=True):
        groups[-1].append(change)
        if cut or change.removes:
            groups.append([])
    return [group for group in groups if group]


@settings(max_examples=30)
@given(changes=_changes, data=st.data())
def test_groups_leave_the_rows_that_single_changes_leave(
    blank_ledger: Path, changes: list[Change], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.booleans(), min_size=len(changes), max_size=len(changes)))
    with tempfile.TemporaryDirectory() as folder:
        together, apart = Book(Path(folder), "together", blank_ledger), Book(Path(folder), "apart", blank_ledger)
        for group in groups_of(changes, cuts):
            together.write(group)
        for change in changes:
            apart.write([change])
        assert together.rows() == apart.rows()
        together.engine.dispose()
        apart.engine.dispose()


@pytest.fixture
def book(tmp_path: Path, blank_ledger: Path) -> Book:
    return Book(tmp_path, "ledger", blank_ledger)


def test_a_change_counts_what_it_writes(book: Book) -> None:
    change = Change(records=(a.task(), a.client()), entries=(a.log(),), dropped=(("t1", 1), ("t1", 2)))
    assert change.size == 5
    assert Change().size == 0


@pytest.mark.parametrize(
    ("change", "removes"),
    [
        (Change(records=(a.task(),), entries=(a.log(),)), False),
        (Change(dropped=(("t1", 1),)), True),
        (Change(removed=("t1",)), True),
        (Change(removed_clients=("c1",)), True),
        (Change(pruned=(Pruned(History.LOGS, "t1", 1),)), True),
    ],
)
def test_what_takes_something_away_ends_its_group(change: Change, removes: bool) -> None:
    assert change.removes is removes


def test_a_specification_that_changed_is_written_again_and_keeps_the_blobs_of_both(book: Book) -> None:
    """A blob reference is kept once: a rewritten task may still be read by who holds the older specification."""
    book.write([Change(records=(a.task(spec=a.spec("old")),))])
    book.write([Change(records=(a.task(spec=a.spec("new")),))])
    rows = book.rows()
    assert len(rows["submissions"]) == len(rows["tasks"]) == 1
    assert '"name": "new"' in rows["submissions"][0][1]
    assert len(rows["blobs"]) == 8


def test_a_task_saved_each_round_does_not_repeat_its_specification(book: Book) -> None:
    task = a.task()
    book.write([Change(records=(task,))])
    with book.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM submissions")
    book.write([Change(records=(task,))])
    assert book.rows()["submissions"] == []


@pytest.mark.parametrize("state", TaskState)
def test_a_specification_is_remembered_while_its_task_goes_on(state: TaskState) -> None:
    """A server runs for months: what it keeps of each task in memory must end with the task."""
    stored, task = StoredSpecs(), a.task()
    stored.committed([Change(records=(task,))])
    assert not stored.lacks(task)
    stored.committed([Change(records=(replace(task, state=state),))])
    assert stored.lacks(task) is (state in ENDED)


def test_a_group_that_was_rolled_back_is_not_taken_for_written(book: Book) -> None:
    task = a.task()
    with book.engine.connect() as connection, connection.begin() as transaction:
        write_changes(connection, [Change(records=(task,))], book._stored)
        transaction.rollback()
    book.write([Change(records=(task,))])
    assert len(book.rows()["submissions"]) == 1


def test_nothing_to_write_is_nothing_written(book: Book) -> None:
    before = book.rows()
    book.write([])
    book.write([Change()])
    assert book.rows() == before


@pytest.mark.parametrize("table", ["tasks", "submissions", "blobs", "rounds", "assignments", "checkpoints", "logs"])
def test_a_removed_task_is_gone_from_every_table(book: Book, table: str) -> None:
    mine = (a.task("t1"), a.round_("t1"), a.assignment("a1", "t1"), a.checkpoint("t1"))
    other = (a.task("t2"), a.round_("t2"), a.assignment("a2", "t2"), a.checkpoint("t2"))
    book.write([Change(records=(*mine, *other), entries=(a.log(task_id="t1"), a.log(task_id="t2")))])
    before = book.rows()[table]
    book.write([Change(removed=("t1",))])
    left = book.rows()[table]
    assert left == [row for row in before if "t1" not in row]
    assert len(left) == len(before) // 2
