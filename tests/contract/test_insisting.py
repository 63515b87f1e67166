"""What every ledger must do while its disk refuses."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from protocol.errors import Unavailable
from protocol.retry import RetryPolicy
from storage.ledger import SqlLedger
from storage.memory_ledger import MemoryLedger
from storage.ports.ledger import Ledger
from tests.contract.holds import holds
from tests.storage import records as a


class Stage(Protocol):
    """A ledger, and a way to make its disk refuse."""

    ledger: Ledger

    def refusing(self) -> AbstractContextManager[None]:
        """Let the disk refuse within the block."""


class Locked:
    """SQLite's file, which another program locks."""

    def __init__(self, ledger: SqlLedger, path: Path) -> None:
        self.ledger = ledger
        self._path = path

    @contextmanager
    def refusing(self) -> Iterator[None]:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield


class Told:
    """The ledger in memory, which is told to refuse."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        self.ledger.refuse("the disk is full")
        try:
            yield
        finally:
            self.ledger.accept()


@pytest.fixture(params=["sqlite", "memory"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setattr("storage.engine.LOCK_WAIT_SECONDS", 0.01)
    if request.param == "memory":
        made: Stage = Told()
    else:
        path = tmp_path / "ledger.db"
        made = Locked(await SqlLedger.open(path, retry=RetryPolicy(0.001, 0.001)), path)
    yield made
    await made.ledger.close()


async def _fails(ledger: Ledger) -> str:
    async with asyncio.timeout(30):
        while ledger.failure is None:  # noqa: ASYNC110  # it has no event: people ask for it
            await asyncio.sleep(0.001)
        return ledger.failure


@holds(
    "A save that insists MUST NOT be refused with Unavailable before the close",
    "It MUST be None as soon as all is well again",
)
async def test_who_insists_waits_for_the_disk_and_the_failure_is_told(stage: Stage) -> None:
    with stage.refusing():
        first = stage.ledger.submit([a.task(version=1)], [a.event("old")], insist=True)
        second = stage.ledger.submit([a.task(version=2)], [a.event("new")], insist=True)
        assert await _fails(stage.ledger)
        assert not first.done()
    async with asyncio.timeout(30):
        await asyncio.gather(first, second)
    assert stage.ledger.failure is None
    assert [n.entry.message for n in await stage.ledger.events()] == ["old", "new"]
    found = await stage.ledger.task("t1")
    assert found is not None
    assert found.version == 2


@holds("one that does not insist MUST be refused meanwhile")
async def test_who_does_not_insist_is_refused_alone(stage: Stage) -> None:
    with stage.refusing():
        fact = stage.ledger.submit([], [a.event("fact")], insist=True)
        with pytest.raises(Unavailable):
            await stage.ledger.save([], [a.event("line")])
        assert not fact.done()
    async with asyncio.timeout(30):
        await fact
    await stage.ledger.save([], [a.event("later")])
    assert [n.entry.message for n in await stage.ledger.events()] == ["fact", "later"]


async def test_the_close_does_not_wait_for_the_disk(stage: Stage) -> None:
    with stage.refusing():
        saved = stage.ledger.submit([], [a.event()], insist=True)
        await _fails(stage.ledger)
        async with asyncio.timeout(30):
            await stage.ledger.close()
        with pytest.raises(Unavailable):
            await saved
