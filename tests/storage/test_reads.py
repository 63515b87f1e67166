"""What the ledger answers: the rows that were asked for, in their order, and nothing of another task's."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import RemovedClient, RoundState
from storage.errors import DamagedLedger
from storage.ledger import SqlLedger
from storage.ports.ledger import History, TaskEnd
from tests.storage import records as a


@pytest.fixture
async def ledger(tmp_path: Path, blank_ledger: Path) -> AsyncIterator[SqlLedger]:
    shutil.copy(blank_ledger, tmp_path / "ledger.db")
    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    yield ledger
    await ledger.close()


def execute(path: Path, statement: str, *values: object) -> None:
    """Change the ledger's file behind its back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(statement, values)


class TestFeeds:
    """Events, logs and metrics: appended for ever, read from a number on."""

    @pytest.fixture(autouse=True)
    async def _written(self, ledger: SqlLedger) -> None:
        for number in range(30):
            task = ("t1", "t2", None)[number % 3]
            entries = [a.event(f"event {number}", task)]
            if task is not None:
                entries += [a.log(f"line {number}", task), a.metric(float(number), task)]
            await ledger.save([], entries)

    @pytest.mark.parametrize("limit", [1, 3, 7, 1000])
    @pytest.mark.parametrize("task", ["t1", "t2", "t3", None])
    async def test_pages_of_any_size_give_each_event_once_in_order(
        self, ledger: SqlLedger, task: str | None, limit: int
    ) -> None:
        found, after = [], 0
        while page := await ledger.events(task, after, limit):
            assert len(page) <= limit
            found += page
            after = page[-1].seq
        mine = [n for n in range(30) if task is None or ("t1", "t2", None)[n % 3] == task]
        assert [one.entry.message for one in found] == [f"event {n}" for n in mine]
        assert [one.seq for one in found] == sorted({one.seq for one in found})

    async def test_a_task_sees_its_own_lines_and_metrics_only(self, ledger: SqlLedger) -> None:
        assert [one.entry.text for one in await ledger.logs("t2")] == [f"line {n}" for n in range(1, 30, 3)]
        assert [one.entry.value for one in await ledger.metrics("t1")] == [float(n) for n in range(0, 30, 3)]
        assert await ledger.logs("t3") == []

    async def test_numbers_are_not_used_again_after_the_newest_went(self, ledger: SqlLedger) -> None:
        """Who follows a feed by its last number must not miss what comes after a removal."""
        newest = (await ledger.logs("t1"))[-1].seq
        await ledger.prune(History.LOGS, "t1", newest)
        await ledger.prune(History.LOGS, "t2", newest + 1000)
        await ledger.save([], [a.log("after")])
        assert [one.entry.text for one in await ledger.logs("t1", after=newest)] == ["after"]

    async def test_a_number_beyond_the_end_gives_nothing_yet(self, ledger: SqlLedger) -> None:
        assert await ledger.events(None, after=10**12) == []


async def test_a_list_of_many_rows_is_whole(ledger: SqlLedger) -> None:
    """More than a partition's rows: the loop has its turn between, and no row is lost or doubled at the seams."""
    await ledger.save([a.assignment(f"{n:04}", round=n) for n in range(1203)])
    assert [one.assignment_id for one in await ledger.assignments("t1")] == [f"{n:04}" for n in range(1203)]
    held = (await ledger.load()).assignments
    assert sorted(one.assignment_id for one in held) == [f"{n:04}" for n in range(1203)]


async def test_a_restart_loads_tasks_in_the_order_of_their_submission(ledger: SqlLedger) -> None:
    times = {"b": 2.0, "a": 2.0, "z": 1.0, "m": 3.0}
    await ledger.save([a.task(name, created_at=at) for name, at in times.items()])
    assert [task.task_id for task in (await ledger.load()).tasks] == ["z", "a", "b", "m"]


async def test_a_restart_goes_on_with_higher_fences_than_any_before(ledger: SqlLedger) -> None:
    assert (await ledger.load()).last_fence == 0
    done = AssignmentState.DELIVERED
    await ledger.save([a.assignment("a", fence=7), a.assignment("b", fence=12, state=done), a.assignment("c", fence=9)])
    assert (await ledger.load()).last_fence == 12


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_the_newest_rounds_come_first(ledger: SqlLedger, limit: int) -> None:
    await ledger.save([a.round_(number=n, state=RoundState.COMMITTED) for n in (3, 0, 2, 1)])
    await ledger.save([a.round_("t2", number=9)])
    assert [one.number for one in await ledger.rounds("t1", limit)] == [3, 2, 1, 0][:limit]


async def test_counted_assignments_alone_are_a_rounds_books(ledger: SqlLedger) -> None:
    await ledger.save(
        [a.assignment("yes", counted=True, counted_in=1), a.assignment("no"), a.assignment("other", "t2", counted=True)]
    )
    assert [one.assignment_id for one in await ledger.assignments("t1", counted_only=True)] == ["yes"]


class TestCheckpoints:
    """Of a task: those up to its version; a later one was damaged, and the task fell back."""

    @pytest.mark.parametrize(("version", "seen"), [(0, [0]), (1, [0]), (2, [0, 2]), (3, [0, 2]), (9, [0, 2, 5])])
    async def test_those_beyond_the_version_are_not_seen(
        self, ledger: SqlLedger, version: int, seen: list[int]
    ) -> None:
        await ledger.save([a.task(version=version), *(a.checkpoint(round=n) for n in (0, 2, 5))])
        assert [one.round for one in await ledger.checkpoints("t1")] == seen
        newest = await ledger.checkpoint("t1")
        assert newest is not None
        assert newest.round == seen[-1]
        assert [one.round for one in (await ledger.load()).checkpoints] == [seen[-1]]

    async def test_one_is_asked_for_by_its_round(self, ledger: SqlLedger) -> None:
        await ledger.save([a.task(version=9), a.checkpoint(round=2), a.checkpoint(round=5)])
        assert await ledger.checkpoint("t1", 2) == a.checkpoint(round=2)
        assert await ledger.checkpoint("t1", 3) is None
        assert await ledger.checkpoint("t2", 2) is None

    async def test_those_of_a_task_that_is_not_there_are_kept_and_not_loaded(self, ledger: SqlLedger) -> None:
        await ledger.save([a.checkpoint(round=2)])
        assert [one.round for one in await ledger.checkpoints("t1")] == [2]
        assert (await ledger.load()).checkpoints == ()


class TestDamagedRows:
    """A row that is no record: the start says so, and names the file."""

    @pytest.mark.parametrize(
        ("table", "change"),
        [
            ("tasks", "state = 'dancing'"),
            ("tasks", "leftover = '[[1, 2]]'"),
            ("tasks", "metrics = '{'"),
            ("assignments", "kind = 'sing'"),
            ("assignments", "ranges = '7'"),
            ("clients", "resources = 'x'"),
            ("checkpoints", "weights_bytes = -5"),
            ("checkpoints", "weights_digest = 'short'"),
        ],
    )
    async def test_keep_a_server_from_starting_with_the_reason(
        self, ledger: SqlLedger, tmp_path: Path, table: str, change: str
    ) -> None:
        await ledger.save([a.task(version=1), a.client(), a.assignment(), a.checkpoint()])
        execute(tmp_path / "ledger.db", f"UPDATE {table} SET {change}")
        with pytest.raises(DamagedLedger, match=r"ledger\.db holds a record .*restore it from a backup"):
            await ledger.load()

    async def test_of_what_a_restart_does_not_need_harm_nobody(self, ledger: SqlLedger, tmp_path: Path) -> None:
        await ledger.save([a.task(), a.assignment(state=AssignmentState.DELIVERED)])
        execute(tmp_path / "ledger.db", "UPDATE assignments SET ranges = 'x'")
        assert [task.task_id for task in (await ledger.load()).tasks] == ["t1"]

    async def test_a_table_that_is_gone_is_no_defect_of_the_server(self, ledger: SqlLedger, tmp_path: Path) -> None:
        execute(tmp_path / "ledger.db", "DROP TABLE rounds")
        with pytest.raises(Exception, match=r"run `farm-server doctor`") as raised:
            await ledger.load()
        assert str(tmp_path / "ledger.db") in str(raised.value)


async def test_a_resource_that_nobody_may_tell_today_is_forgotten(ledger: SqlLedger, tmp_path: Path) -> None:
    await ledger.save([a.client()])
    execute(tmp_path / "ledger.db", "UPDATE clients SET resources = ?", json.dumps({"ram_bytes": -1}))
    (read,) = (await ledger.load()).clients
    assert read == a.client()


async def test_each_task_s_end_is_told(ledger: SqlLedger) -> None:
    await ledger.save([a.task("t1"), a.task("t2", state=TaskState.COMPLETED, finished_at=8.5)])
    assert {end.task_id: end for end in await ledger.task_ends()} == {
        "t1": TaskEnd("t1", "running", None),
        "t2": TaskEnd("t2", "completed", 8.5),
    }


async def test_who_submitted_twice_is_led_to_the_first(ledger: SqlLedger) -> None:
    await ledger.save([a.task("t1", submit_token="first"), a.task("t2", submit_token="second"), a.task("t3")])
    found = await ledger.task_by_token("second")
    assert found is not None
    assert found.task_id == "t2"
    assert await ledger.task_by_token("") is None


async def test_beyond_and_count_agree_with_a_list(ledger: SqlLedger) -> None:
    for number in range(9):
        await ledger.save([a.round_(number=number)], [a.log(task_id="t1" if number % 2 else "t2")])
    numbers = [one.seq for one in await ledger.logs("t1")]
    for keep in range(8):
        upto = await ledger.beyond(History.LOGS, "t1", keep)
        assert upto == (numbers[: max(len(numbers) - keep, 0)] or [None])[-1]
    for upto in range(-1, 12):
        assert await ledger.count_upto(History.LOGS, "t1", upto) == sum(n <= upto for n in numbers)
        assert await ledger.count_upto(History.ROUNDS, "t1", upto) == min(max(upto + 1, 0), 9)


class TestRemovedClients:
    """A client that a person removed leaves the ledger; its past work stays."""

    async def test_only_that_one_goes(self, ledger: SqlLedger) -> None:
        await ledger.save([a.client("c1"), a.client("c2"), a.assignment(client_id="c1")])
        await ledger.save([RemovedClient("c1"), replace(a.client("c2"), name="renamed")])
        found = await ledger.load()
        assert [(one.client_id, one.name) for one in found.clients] == [("c2", "renamed")]
        assert [one.client_id for one in found.assignments] == ["c1"]

    async def test_one_that_comes_again_is_there_again(self, ledger: SqlLedger) -> None:
        waiting = [
            ledger.submit([a.client("c1")]),
            ledger.submit([RemovedClient("c1")]),
            ledger.submit([a.client("c1")]),
        ]
        for one in waiting:
            await one
        assert [one.client_id for one in (await ledger.load()).clients] == ["c1"]


async def _steps_of(ledger: SqlLedger, read: Callable[[], Awaitable[object]]) -> int:
    """Count the steps that SQLite takes to answer."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    async with ledger._readers.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.set_progress_handler(step, 1)
    await read()  # over the same connection: there is one that is free
    async with ledger._readers.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.set_progress_handler(None, 1)
    return steps


async def test_a_start_costs_the_same_however_many_tasks_have_ended(ledger: SqlLedger) -> None:
    async def end(names: list[str]) -> None:
        done = {"state": AssignmentState.DELIVERED, "counted": True}
        tasks = [a.task(name, state=TaskState.COMPLETED, version=9, finished_at=9.0) for name in names]
        rounds = [a.round_(name, state=RoundState.COMMITTED) for name in names]
        await ledger.save([*tasks, *rounds, *map(a.checkpoint, names), *(a.assignment(n, n, **done) for n in names)])

    async def costs() -> list[int]:
        return [await _steps_of(ledger, read) for read in (ledger.load, lambda: ledger.task_page(5))]

    await ledger.save(
        [a.client(), a.task("live"), a.checkpoint("live", 0), a.round_("live"), a.assignment("a", "live")]
    )
    await end([f"gone{number}" for number in range(10)])
    await costs()  # the first time SQLite reads the schema, too
    few = await costs()
    await end([f"gone{number}" for number in range(10, 500)])
    assert await costs() == few
    assert min(few) > 20
