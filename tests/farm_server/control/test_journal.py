from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from coordinator.records import ClientRecord, Entry, EventRecord, Record
from farm_server.control.journal import Journal
from protocol.errors import Unavailable
from storage.errors import BadRecord


def record(name: str) -> ClientRecord:
    return ClientRecord(name, name, "hash", 0.0, 0.0)


def entry(name: str) -> EventRecord:
    return EventRecord(0.0, name, name)


class Disk:
    """A ledger that answers each submission with the next of its outcomes, and after them with success."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.tried: list[tuple[list[str], list[str]]] = []
        self.written: list[str] = []
        self.entries: list[str] = []

    def submit(self, records: Sequence[Record], entries: Sequence[Entry] = ()) -> asyncio.Future[None]:
        names = [r.client_id for r in records]
        self.tried.append((names, [e.kind for e in entries]))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        done = asyncio.get_running_loop().create_future()
        if outcome is None:
            self.written += names
            self.entries += [e.kind for e in entries]
            done.set_result(None)
        else:
            done.set_exception(outcome)
        return done


@pytest.fixture
async def saved() -> list[str]:
    return []


def journal(disk: Disk, saved: list[str]) -> Journal:
    made = Journal(disk, lambda entries: saved.extend(e.kind for e in entries), retry_seconds=0.001)
    made.start()
    return made


async def test_what_is_saved_is_told_to_those_who_read(saved):
    disk = Disk()
    at_work = journal(disk, saved)
    await at_work.submit([record("a")], [entry("first")])
    assert (disk.written, saved) == (["a"], ["first"])
    await at_work.close()


async def test_a_full_disk_is_tried_again_in_order_and_nothing_is_lost(saved):
    disk = Disk(Unavailable("disk full"), Unavailable("disk full"))
    at_work = journal(disk, saved)
    first = at_work.submit([record("old")])
    await asyncio.sleep(0)
    second = at_work.submit([record("new")])
    await first
    assert at_work.failure is None
    await second
    assert disk.written == ["old", "new"]
    await at_work.close()


async def test_the_failure_is_visible_while_it_lasts(saved):
    seen: list[str | None] = []
    disk = Disk(Unavailable("disk full"))
    at_work = journal(disk, saved)
    submit = disk.submit
    disk.submit = lambda *change: seen.append(at_work.failure) or submit(*change)
    await at_work.submit([record("a")])
    assert (seen, at_work.failure) == ([None, "disk full"], None)
    await at_work.close()


async def test_a_retried_older_record_never_overwrites_a_newer_one(saved):
    """The second of two changes got through where the first did not: its records go again, its entries do not."""
    disk = Disk(Unavailable("disk full"), None)
    at_work = journal(disk, saved)
    await asyncio.gather(
        at_work.submit([record("first")], [entry("one")]), at_work.submit([record("second")], [entry("two")])
    )
    assert disk.written == ["second", "first", "second"]
    assert sorted(disk.entries) == ["one", "two"]
    await at_work.close()


async def test_a_record_that_can_never_be_saved_holds_nothing_up(saved):
    disk = Disk(BadRecord("no"))
    at_work = journal(disk, saved)
    await at_work.submit([record("bad")])
    await at_work.submit([record("good")])
    assert disk.written == ["good"]
    await at_work.close()


async def test_closing_saves_what_waits(saved):
    disk = Disk()
    at_work = journal(disk, saved)
    waiting = at_work.submit([record("a")])
    await at_work.close()
    assert waiting.done()
    assert disk.written == ["a"]


async def test_closing_does_not_wait_for_a_disk_that_refuses(saved):
    disk = Disk(*[Unavailable("disk full")] * 1000)
    at_work = journal(disk, saved)
    waiting = at_work.submit([record("a")])
    await asyncio.wait_for(at_work.close(), 30)
    assert waiting.cancelled()
