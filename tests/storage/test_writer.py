"""Disks that are full or read-only, locks, and many writers at once: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError

from protocol.errors import Unavailable
from protocol.retry import RetryPolicy
from storage.errors import DamagedLedger, NewerLedger, StorageError
from storage.ledger import SqlLedger
from storage.transaction import Change, write_changes
from tests.storage import records as a


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqlLedger]:
    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    yield ledger
    await ledger.close()


async def _messages(ledger: SqlLedger) -> list[str]:
    return [n.entry.message for n in await ledger.events(None, limit=10_000)]


async def test_a_commit_is_on_the_disk_and_readers_do_not_wait(ledger: SqlLedger) -> None:
    with ledger._writer._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


async def test_readers_can_change_nothing(ledger: SqlLedger) -> None:
    async with ledger._readers.connect() as connection:
        with pytest.raises(OperationalError, match="readonly"):
            await connection.exec_driver_sql("DELETE FROM tasks")


async def test_what_waits_shares_a_transaction(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one commit is under way, all that arrives is folded into the next."""
    entered, go_on = threading.Event(), threading.Event()
    groups: list[int] = []

    def slow(connection: object, changes: list[object], stored: object) -> None:
        groups.append(len(changes))
        entered.set()
        assert go_on.wait(30)
        write_changes(connection, changes, stored)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr("storage.writer.write_changes", slow)
    first = ledger.submit([], [a.event("first")])
    await asyncio.to_thread(entered.wait, 30)
    rest = [ledger.submit([], [a.event(str(n))]) for n in range(100)]
    go_on.set()
    await asyncio.gather(first, *rest)
    assert groups == [1, 100]
    assert await _messages(ledger) == ["first", *map(str, range(100))]


async def test_a_group_is_bounded(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []

    def counting(connection: object, changes: list[object], stored: object) -> None:
        groups.append(len(changes))
        write_changes(connection, changes, stored)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr("storage.writer.write_changes", counting)
    await asyncio.gather(*(ledger.save([], [a.event(f"{n}")] * 10) for n in range(500)))
    assert sum(groups) == 500
    assert max(groups) <= 100


async def test_a_locked_ledger_refuses_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.engine.LOCK_WAIT_SECONDS", 0.05)
    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    await ledger.save([], [a.event("before")])
    with sqlite3.connect(tmp_path / "ledger.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another program keeps it locked"):
            await ledger.save([], [a.event("refused")])
        assert await _messages(ledger) == ["before"]
        other.execute("ROLLBACK")
    await ledger.save([], [a.event("after")])
    assert await _messages(ledger) == ["before", "after"]
    await ledger.close()


async def test_damage_is_not_blamed_on_the_record(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    damage = sqlite3.DatabaseError("database disk image is malformed")
    damage.sqlite_errorname = "SQLITE_CORRUPT"

    def damaged(*_: object) -> None:
        raise DatabaseError("INSERT", {}, damage)

    monkeypatch.setattr("storage.writer.write_changes", damaged)
    with pytest.raises(DamagedLedger, match=r"malformed.*restore it from a backup"):
        await ledger.save([a.task()])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield mount
    subprocess.run(["umount", mount], check=True)


async def test_a_full_disk_loses_nothing_acknowledged_and_recovers(tiny_disk: Path) -> None:
    ledger = await SqlLedger.open(tiny_disk / "ledger.db")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    acknowledged: list[str] = []

    async def save_until_full() -> None:
        for number in range(1000):
            await ledger.save([], [a.event(f"{number} {'x' * 5000}")])
            acknowledged.append(f"{number} {'x' * 5000}")

    with pytest.raises(Unavailable, match=r"no space is left on its disk; free some"):
        await save_until_full()
    assert acknowledged
    assert await _messages(ledger) == acknowledged
    ballast.unlink()
    await ledger.save([], [a.event("after")])
    assert await _messages(ledger) == [*acknowledged, "after"]
    await ledger.close()
    ledger = await SqlLedger.open(tiny_disk / "ledger.db")
    assert await _messages(ledger) == [*acknowledged, "after"]
    await ledger.close()


def test_a_read_only_disk_refuses_with_the_reason(tiny_disk: Path) -> None:
    (tiny_disk / "ledger.db").touch()
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(Unavailable, match=r"read-only|writable"):
        asyncio.run(SqlLedger.open(tiny_disk / "ledger.db"))


class TestOpen:
    """What may be given to ``SqlLedger.open``."""

    @pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "sqlite+aiosqlite:///{}"])
    async def test_a_path_or_a_url(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "100% of the farm.db"
        ledger = await SqlLedger.open(form.format(path))
        await ledger.save([], [a.event()])
        await ledger.close()
        assert path.is_file()

    async def test_a_path_that_looks_like_a_url(self, tmp_path: Path) -> None:
        path = tmp_path / "really?#a=b%20.db"
        await (await SqlLedger.open(path)).close()
        assert path.is_file()

    @pytest.mark.parametrize(
        ("location", "reason"),
        [
            ("postgresql://db/farm", "cannot use postgresql yet"),
            ("sqlite://", "needs a file"),
            ("sqlite:///:memory:", "needs a file"),
            ("nonsense://[", "not a database URL|cannot use nonsense"),
        ],
    )
    async def test_no_other_database(self, location: str, reason: str) -> None:
        with pytest.raises(StorageError, match=reason):
            await SqlLedger.open(location)

    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        path.write_bytes(b"these are my notes, not a database\n" * 100)
        with pytest.raises(DamagedLedger, match="not an intact ledger"):
            await SqlLedger.open(path)
        assert path.read_bytes().startswith(b"these are my notes")

    async def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="check that its folder exists"):
            await SqlLedger.open(tmp_path / "absent" / "ledger.db")

    async def test_a_newer_ledger(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        await (await SqlLedger.open(path)).close()
        with sqlite3.connect(path) as other:
            other.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(NewerLedger, match="upgrade"):
            await SqlLedger.open(path)

    async def test_many_at_once_in_one_process(self, tmp_path: Path) -> None:
        ledgers = await asyncio.gather(*(SqlLedger.open(tmp_path / f"{n}.db") for n in range(4)))
        await asyncio.gather(*(ledger.save([a.task()]) for ledger in ledgers))
        await asyncio.gather(*(ledger.close() for ledger in ledgers))


class Refusing:
    """A disk that refuses until it is told otherwise, with what it was asked to write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[list[str]] = []
        self.refuses = True
        self.asked = threading.Event()
        monkeypatch.setattr("storage.writer.write_changes", self._write)

    def _write(self, connection: object, changes: list[Change], stored: object) -> None:
        self.tried.append([entry.message for change in changes for entry in change.entries])  # type: ignore[union-attr]  # events only
        self.asked.set()
        if self.refuses:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorname = "SQLITE_FULL"
            raise OperationalError("INSERT", {}, full)
        write_changes(connection, changes, stored)  # type: ignore[arg-type]  # passed through


class TestInsisting:
    """What must not be lost waits for the disk, at the head of the queue."""

    @pytest.fixture
    async def quick(self, tmp_path: Path) -> AsyncIterator[SqlLedger]:
        ledger = await SqlLedger.open(tmp_path / "quick.db", retry=RetryPolicy(0.001, 0.001))
        yield ledger
        await ledger.close()

    async def test_it_is_tried_again_in_order_and_nothing_is_lost(
        self, quick: SqlLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Refusing(monkeypatch)
        first = quick.submit([a.task(version=1)], [a.event("old")], insist=True)
        await asyncio.to_thread(disk.asked.wait, 30)
        second = quick.submit([a.task(version=2)], [a.event("new")], insist=True)
        disk.refuses = False
        await asyncio.gather(first, second)
        assert await _messages(quick) == ["old", "new"]
        found = await quick.task("t1")
        assert found is not None
        assert found.version == 2
        assert all(group[:1] == ["old"] for group in disk.tried[:-1])

    async def test_the_failure_is_visible_while_it_lasts(
        self, quick: SqlLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Refusing(monkeypatch)
        saved = quick.submit([], [a.event()], insist=True)
        while quick.failure is None:  # noqa: ASYNC110  # it has no event: a person asks
            await asyncio.sleep(0)
        assert "no space is left" in quick.failure
        disk.refuses = False
        await saved
        assert quick.failure is None

    async def test_who_does_not_insist_is_refused_meanwhile_and_alone(
        self, quick: SqlLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Refusing(monkeypatch)
        fact = quick.submit([], [a.event("fact")], insist=True)
        with pytest.raises(Unavailable, match="no space is left"):
            await quick.save([], [a.event("line")])
        assert not fact.done()
        disk.refuses = False
        await fact
        assert await _messages(quick) == ["fact"]

    async def test_a_closing_ledger_does_not_wait_for_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = await SqlLedger.open(tmp_path / "ledger.db", retry=RetryPolicy(600.0, 600.0))
        disk = Refusing(monkeypatch)
        saved = ledger.submit([], [a.event()], insist=True)
        await asyncio.to_thread(disk.asked.wait, 30)
        await asyncio.wait_for(ledger.close(), 30)
        with pytest.raises(Unavailable, match="no space is left"):
            await saved
