"""What the ledger answers, as those who save and those who read hear of it. How it retries: tests/storage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
        self.written: list[str] = []
        self.failure: str | None = None

    def submit(
        self, records: Sequence[Record], entries: Sequence[Entry] = (), *, insist: bool = False
    ) -> asyncio.Future[None]:
        assert insist, "what the coordinator decided must not be lost"
        outcome = self.outcomes.pop(0) if self.outcomes else None
        done = asyncio.get_running_loop().create_future()
        if outcome is None:
            self.written += [r.client_id for r in records]
            done.set_result(None)
        else:
            done.set_exception(outcome)
        return done


async def test_who_reads_can_read_it_before_who_saved_it_goes_on():
    heard: list[str] = []
    disk = Disk()
    journal = Journal(disk, lambda entries: heard.extend(e.kind for e in entries))
    saved = journal.submit([record("a")], [entry("first")])
    saved.add_done_callback(lambda _: heard.append("saved"))
    await saved
    await asyncio.sleep(0)
    assert (disk.written, heard) == (["a"], ["first", "saved"])


async def test_what_is_to_be_written_first_is_asked_for_before_anything_is_queued():
    disk = Disk()
    asked: list[tuple[str, int]] = []
    journal = Journal(disk, lambda _: None, lambda records: asked.append((records[0].client_id, len(disk.written))))
    for name in ("a", "b"):
        await journal.submit([record(name)])
    assert asked == [("a", 0), ("b", 1)]


async def test_a_record_that_can_never_be_saved_holds_nothing_up():
    heard: list[Entry] = []
    disk = Disk(BadRecord("no"))
    journal = Journal(disk, heard.extend)
    await journal.submit([record("bad")], [entry("of the bad one")])
    await journal.submit([record("good")])
    assert (disk.written, heard) == (["good"], [])


async def test_what_the_disk_refuses_at_the_shutdown_is_given_up():
    saved = Journal(Disk(Unavailable("disk full")), lambda _: None).submit([record("a")])
    await asyncio.wait([saved])
    assert saved.cancelled()


async def test_the_ledgers_failure_is_the_journals():
    disk = Disk()
    journal = Journal(disk, lambda _: None)
    assert journal.failure is None
    disk.failure = "disk full"
    assert journal.failure == "disk full"
