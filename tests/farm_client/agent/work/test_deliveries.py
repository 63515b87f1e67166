"""From the outbox to the farm, over connections that come and go: each result is sent until it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from farm_client.agent.connection.link import Link
from farm_client.agent.home.outbox import Outbox, Parcel
from farm_client.agent.work.deliveries import Deliveries
from farm_client.agent.work.result_sender import ResultSender
from farm_client.transfer.tally import Tally
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Result
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, Unavailable
from protocol.messages import Message
from protocol.tasks import BlobRef


@dataclass
class StandInLink:
    """A connection that keeps what it was given."""

    room_bytes: int = 100
    posted: list[Result] = field(default_factory=list)

    def post(self, message: Message) -> None:
        assert isinstance(message, Result)
        self.posted.append(message)


@dataclass
class StandInTransfers:
    """A way to the farm's blobs; ``answers`` are what the next uploads raise, None for a success."""

    answers: list[Exception | None] = field(default_factory=list)
    uploads: list[tuple[str, Path | bytes]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    during: Callable[[UploadListener], None] = lambda _: None
    gate: asyncio.Event | None = None
    paced: list[int] = field(default_factory=list)
    while_paced: Callable[[], None] = lambda: None

    async def pace_message(self, update_bytes: int) -> None:
        self.paced.append(update_bytes)
        self.while_paced()

    async def upload(self, digest: str, content: Path | bytes, listener: UploadListener) -> None:
        self.uploads.append((digest, content))
        self.during(listener)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


@dataclass
class World:
    """Deliveries with an outbox of its own, and what a person hears."""

    folder: Path
    link: StandInLink = field(default_factory=StandInLink)
    transfers: StandInTransfers = field(default_factory=StandInTransfers)
    notes: list[str] = field(default_factory=list)
    waits: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.folder, "ws://farm", "c1", 10**6, self.notes.append)
        sender = ResultSender(cast("Any", self.transfers), self.notes.append)
        self.deliveries = Deliveries(self.outbox, sender, self.notes.append, self.waits.append)

    def attach(self, link: StandInLink | None = None) -> tuple[str, ...]:
        self.link = link or self.link
        return self.deliveries.attach(cast("Link", self.link))

    def finished(self, name: str, size: int, *, in_file: bool = False) -> Parcel:
        data = bytes([len(name)]) * size
        inline = None if in_file else data
        update = BlobRef(digest=digest_bytes(data), size_bytes=size, inline=inline) if size else None
        path = None
        if in_file:
            path = self.folder.parent / f"{name}.made"
            path.write_bytes(data)
        return self.outbox.put(Parcel(Result(assignment_id=name, fence=1, samples=2, update=update), 3, path))


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "outbox").mkdir()
    return World(tmp_path / "outbox")


@pytest.mark.parametrize(("size", "uploads"), [(0, 0), (99, 0), (100, 0), (101, 1)])
async def test_a_small_update_rides_in_its_result_and_a_large_one_goes_before_it(
    world: World, size: int, uploads: int
) -> None:
    world.attach()
    parcel = world.finished("a", size)
    await world.deliveries.deliver(parcel)
    assert len(world.transfers.uploads) == uploads
    (result,) = world.link.posted
    assert result.assignment_id == "a"
    assert (result.update.inline if result.update is not None else None) == (
        parcel.result.update.inline if parcel.result.update is not None and not uploads else None
    )
    assert "a" in world.outbox  # until the farm has settled it


async def test_an_update_in_a_file_is_sent_from_there(world: World) -> None:
    world.attach()
    parcel = world.finished("a", 50, in_file=True)
    await world.deliveries.deliver(parcel)
    ((_, content),) = world.transfers.uploads
    assert content == parcel.path
    assert isinstance(content, Path)
    assert content.parent != world.folder.parent  # the outbox's own


async def test_without_a_connection_it_waits_in_the_outbox_for_the_next(world: World) -> None:
    await world.deliveries.deliver(world.finished("small", 10))
    await world.deliveries.deliver(world.finished("large", 500))
    assert world.transfers.uploads == []
    assert world.attach() == ("small", "large")
    for name in ("small", "large"):
        await world.deliveries.deliver_again(name)
    assert [result.assignment_id for result in world.link.posted] == ["small", "large"]


async def test_what_is_under_way_is_not_sent_twice_over_a_new_connection(world: World) -> None:
    world.attach()
    world.transfers.gate = asyncio.Event()
    sending = asyncio.create_task(world.deliveries.deliver(world.finished("a", 500)))
    await asyncio.sleep(0)
    world.deliveries.detach()
    again = StandInLink()
    assert world.attach(again) == ()
    world.transfers.gate.set()
    await sending
    assert [result.assignment_id for result in again.posted] == ["a"]  # over the connection there is now


async def test_a_farm_that_is_away_is_tried_again_with_a_note(world: World) -> None:
    world.attach()
    world.transfers.answers = [Unavailable("no space left"), Unavailable("no space left"), None]
    await world.deliveries.deliver(world.finished("a", 500))
    assert len(world.transfers.uploads) == 3
    assert world.notes == ["no space left; trying again"] * 2
    assert len(world.link.posted) == 1


async def test_without_a_connection_a_failing_upload_is_not_tried_for_ever(world: World) -> None:
    world.attach()
    world.transfers.answers = [Unavailable("away")]
    world.transfers.during = lambda _: world.deliveries.detach()
    await world.deliveries.deliver(world.finished("a", 500))
    assert len(world.transfers.uploads) == 1
    assert "a" in world.outbox


@pytest.mark.parametrize("error", [DigestMismatch("damaged"), OSError(5, "Input/output error")], ids=repr)
async def test_a_refused_update_leaves_the_outbox_and_its_error_is_told(world: World, error: Exception) -> None:
    world.attach()
    world.transfers.answers = [error]
    with pytest.raises(type(error)):
        await world.deliveries.deliver(world.finished("a", 500))
    assert "a" not in world.outbox
    assert world.link.posted == []


@pytest.mark.parametrize(
    ("error", "said"), [(DigestMismatch("it is damaged"), "it is damaged"), (RuntimeError(), "RuntimeError")], ids=repr
)
async def test_no_result_that_is_sent_again_is_worth_the_agent(world: World, error: Exception, said: str) -> None:
    world.finished("a", 500)
    world.attach()
    world.transfers.answers = [error]
    await world.deliveries.deliver_again("a")
    assert world.notes == [f"dropped a finished result: {said}"]
    await world.deliveries.deliver_again("a")  # it is gone: nothing to do


async def test_a_settled_result_is_forgotten(world: World) -> None:
    world.attach()
    await world.deliveries.deliver(world.finished("a", 50))
    world.deliveries.settle("a")
    assert "a" not in world.outbox
    assert world.attach() == ()
    world.deliveries.settle("a")  # an acknowledgement may come twice


async def test_bytes_inside_messages_are_counted_once_and_again_where_they_are_sent_again(world: World) -> None:
    world.attach()
    await world.deliveries.deliver(world.finished("a", 50))
    world.attach(StandInLink())
    await world.deliveries.deliver_again("a")
    assert (world.transfers.tally.sent_bytes, world.transfers.tally.sent_again_bytes) == (100, 50)
    world.deliveries.settle("a")
    await world.deliveries.deliver(world.finished("a", 50))  # another attempt at it
    assert (world.transfers.tally.sent_bytes, world.transfers.tally.sent_again_bytes) == (150, 50)


async def test_why_an_upload_waits_is_shown_until_it_does_not(world: World) -> None:
    world.attach()
    heard: list[str | None] = []
    world.transfers.during = lambda listener: (listener.waits("behind 3"), listener.waits(None))[0]
    await world.deliveries.deliver(world.finished("a", 500), UploadListener(waits=heard.append))
    assert heard == ["behind 3", None]
    assert world.waits[0] == "behind 3"
    assert world.waits[-1] is None


async def test_a_leaving_client_waits_for_the_last_answers_but_not_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm_client.agent.work.deliveries._LAST_ACKS_SECONDS", 0.01)
    await world.deliveries.last_acks()
    assert world.notes == []  # nothing waits
    world.attach()
    await world.deliveries.deliver(world.finished("a", 50))
    await world.deliveries.last_acks()
    assert "the next join sends them again" in world.notes[0]
    asyncio.get_running_loop().call_soon(world.deliveries.settle, "a")
    monkeypatch.setattr("farm_client.agent.work.deliveries._LAST_ACKS_SECONDS", 30.0)
    await world.deliveries.last_acks()
    assert len(world.notes) == 1


async def test_an_update_inside_a_message_waits_for_the_owners_rate_too(world: World) -> None:
    world.attach()
    parcel = world.finished("a", 50)

    def change_connection() -> None:
        world.attach(StandInLink(room_bytes=10))

    world.transfers.while_paced = change_connection
    await world.deliveries.deliver(parcel)
    assert world.transfers.paced == [50]
    assert len(world.transfers.uploads) == 1  # for the connection that there is by now it is too large
