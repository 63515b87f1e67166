"""One connection's queue, against a WebSocket that takes a frame only when the test says so."""

from __future__ import annotations

import asyncio

import pytest

from farm_server.clients.wire import Wire, WireLimits
from farm_server.observability.wire_counters import WireCounters
from protocol import link_capacity
from protocol.assignments import Ack, Cancel
from protocol.codec import decode_entry, encode, join, split
from protocol.messages import Drain, Error, Heartbeat, Hello, Message, Pause, Ready, Welcome
from protocol.session import Session, Side
from tests.farm_server.clients.offers import assign

MEGABYTE = 1024 * 1024


class SlowWebSocket:
    """Keeps each frame until ``take``; what came before the first is taken at once."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.arriving: asyncio.Queue[bytes] = asyncio.Queue()
        self.under_way = asyncio.Event()
        self._free = asyncio.Event()
        self._took = asyncio.Semaphore(0)

    async def send_bytes(self, frame: bytes) -> None:
        self.under_way.set()
        await self._free.wait()
        self.taken.append(frame)
        self._took.release()

    async def receive(self) -> dict[str, object]:
        return {"type": "websocket.receive", "bytes": await self.arriving.get()}

    async def close(self, code: int, reason: str) -> None:
        self.closed_with = (code, reason)

    def take_all(self) -> None:
        self._free.set()

    async def took(self, frames: int) -> None:
        """Wait until so many frames were taken."""
        async with asyncio.timeout(30):
            for _ in range(frames):
                await self._took.acquire()

    def messages(self) -> list[list[Message]]:
        return [[decode_entry(entry) for entry in split(frame)] for frame in self.taken]


def make_wire(version: int = 2, max_outbox_bytes: int = 32 * MEGABYTE) -> tuple[Wire, SlowWebSocket, WireCounters]:
    websocket, counters = SlowWebSocket(), WireCounters()
    session = Session(Side.SERVER)
    session.receive(encode(Hello(versions=(version,), client_id="c", client_secret="s" * 16)))
    session.send(Welcome(version=version, incarnation=1))
    limits = WireLimits(max_outbox_bytes, MEGABYTE)
    return Wire(websocket, session, limits, counters), websocket, counters  # type: ignore[arg-type]  # a part of it


async def for_ever() -> None:
    await asyncio.Event().wait()


async def written(wire: Wire, websocket: SlowWebSocket) -> None:
    """Let the peer read, and wait until nothing is unsent."""
    websocket.take_all()
    await wire.flush()


async def test_what_is_sent_together_shares_a_frame() -> None:
    wire, websocket, counters = make_wire()
    acks = [Ack(assignment_id=f"a{n}", fence=1, counted=True) for n in range(3)]
    for ack in acks:
        wire.send(ack)
    await written(wire, websocket)
    assert websocket.messages() == [acks]
    _, sent = counters.views()
    assert (sent.frames, sent.solo_messages, sent.batched_messages) == (1, 0, 3)
    assert sent.bytes == len(websocket.taken[0])


async def test_an_older_client_gets_them_one_by_one() -> None:
    wire, websocket, counters = make_wire(version=1)
    for number in range(3):
        wire.send(Ack(assignment_id=f"a{number}", fence=1, counted=True))
    await written(wire, websocket)
    assert [len(frame) for frame in websocket.messages()] == [1, 1, 1]
    assert counters.views()[1].solo_messages == 3


async def test_orders_reach_a_slow_reader_after_the_frame_under_way() -> None:
    wire, websocket, _ = make_wire()
    talking = asyncio.create_task(wire.converse(for_ever()))
    for number in range(20):
        wire.send(assign(number, MEGABYTE))
    await websocket.under_way.wait()
    orders = [Cancel(assignment_id="a9", fence=9), Pause(task_id="t2"), Drain(reason="upgrade")]
    for order in orders:
        wire.send(order)
    websocket.take_all()
    await websocket.took(20)  # 19 offers and the orders
    first, second, *rest = websocket.messages()
    assert [m.type for m in first] == ["assign"]
    assert second == orders
    assert [m.assignment_id for frame in rest for m in frame] == [f"a{n}" for n in range(1, 20) if n != 9]
    talking.cancel()


async def test_the_unsent_bytes_of_a_peer_that_does_not_read_are_bounded() -> None:
    wire, websocket, _ = make_wire(max_outbox_bytes=2 * MEGABYTE)
    talking = asyncio.create_task(wire.converse(for_ever()))
    wire.send(assign(0, MEGABYTE))
    await websocket.under_way.wait()
    for number in (1, 2):
        wire.send(assign(number, MEGABYTE))
    assert "too slowly" in await talking


async def test_the_frame_under_way_counts_as_unsent() -> None:
    wire, websocket, _ = make_wire(max_outbox_bytes=2 * MEGABYTE)
    talking = asyncio.create_task(wire.converse(for_ever()))
    wire.send(assign(0, MEGABYTE))
    await websocket.under_way.wait()
    wire.send(assign(1, MEGABYTE - 10_000))
    assert not wire.is_over
    wire.send(assign(2, 10_000))
    assert "too slowly" in await talking


async def test_messages_of_a_batch_arrive_together_and_are_counted() -> None:
    wire, websocket, counters = make_wire()
    said = [Heartbeat(), Ready(slots=1)]
    frame = join([encode(m) for m in said])
    websocket.arriving.put_nowait(frame)
    assert await wire.receive() == said
    websocket.arriving.put_nowait(encode(Heartbeat()))
    assert await wire.receive() == [Heartbeat()]
    received, _ = counters.views()
    assert (received.frames, received.solo_messages, received.batched_messages) == (2, 1, 2)


async def test_bad_messages_are_answered_in_one_frame() -> None:
    wire, websocket, _ = make_wire()
    websocket.arriving.put_nowait(join([b"\x01", encode(Ready(slots=1)), b"\x02"]))
    assert await wire.receive() == [Ready(slots=1)]
    await written(wire, websocket)
    (answers,) = websocket.messages()
    assert [m.code for m in answers if isinstance(m, Error)] == ["malformed_frame"] * 2


@pytest.mark.parametrize("unsent", [0, 5])
async def test_the_last_word_of_a_broken_conversation_comes_at_once(unsent: int) -> None:
    wire, websocket, _ = make_wire()
    for number in range(unsent):
        wire.send(assign(number, MEGABYTE))
    websocket.arriving.put_nowait(join([b"\x01"] * 3))
    assert await wire.receive() == []
    websocket.take_all()
    await wire.close()
    (answers,) = websocket.messages()
    assert [m.fatal for m in answers if isinstance(m, Error)] == [False, False, True]
    assert websocket.closed_with == (1002, "malformed_frame")


def test_prometheus_sees_what_was_batched() -> None:
    counters = WireCounters()
    counters.received(100, 3)
    counters.sent(10, 1)
    samples = {
        (s.name, s.labels["direction"], s.labels.get("packing", "")): s.value
        for family in counters.collect()
        for s in family.samples
    }
    assert samples["farm_wire_messages_total", "in", "batched"] == 3
    assert samples["farm_wire_messages_total", "out", "solo"] == 1
    assert samples["farm_wire_frames_total", "in", ""] == 1
    assert samples["farm_wire_bytes_total", "in", ""] == 100


async def test_a_connection_that_needs_long_for_a_frame_carries_smaller_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_capacity, "MOMENT_SECONDS", 0.0)  # any time is too long
    wire, websocket, _ = make_wire()
    assert wire.room_bytes == MEGABYTE
    for number in range(2):
        wire.send(assign(number, MEGABYTE))
    await written(wire, websocket)
    assert wire.room_bytes == link_capacity.LEAST_BYTES
