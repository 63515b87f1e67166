"""One connection by itself, with a farm's end that reads, or does not."""

import asyncio
import math
from contextlib import asynccontextmanager

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.dialing import PING_SECONDS
from farm_client.agent.connection.heartbeat_interval import HeartbeatIntervals
from farm_client.agent.connection.link import LEAST_FRAME_BYTES, open_link
from farm_client.agent.errors import OutOfReach
from protocol import link_capacity
from protocol.assignments import AssignmentProgress, Cancel, LogLine, MetricPoint, Phase, Progress, Reject, RejectCode
from protocol.codec import encode, join
from protocol.limits import MAX_PACE_SECONDS, MIN_PACE_SECONDS
from protocol.messages import Bye, Error, Heartbeat, Hello, Pace, Ready, Welcome
from protocol.session import Session, Side
from tests.farm_client.agent.waiting import until

ERROR = Error(code="x", message="boom", assignment_id="a1", fence=1)
REJECT = Reject(assignment_id="a2", fence=2, code=RejectCode.BLOB_UNAVAILABLE)


def hello(version):
    return Hello(versions=(version,), client_id="c", client_secret="s" * 16)


class FarEnd:
    """The farm's end of one connection: it has welcomed the client and reads what comes, unless ``deaf``."""

    def __init__(self, websocket):
        self.heard = []
        self.frames = 0
        self.websocket = websocket
        self.session = Session(Side.SERVER)

    async def greet(self, version, **terms):
        self.session.receive(await self.websocket.recv())
        await self.websocket.send(self.session.send(Welcome(version=version, incarnation=1, **terms)))

    async def listen(self):
        try:
            while True:
                self.heard += self.session.receive(await self.websocket.recv())
                self.frames += 1
        except ConnectionClosed:
            return

    def be_deaf(self):
        self.websocket.transport.pause_reading()

    def send_close(self, code):
        self.websocket.protocol.send_close(code)
        self.websocket.send_data()

    def die(self):
        self.websocket.transport.abort()


@asynccontextmanager
async def linked(version=2, capacity=None, **terms):
    """Return both ends of a connection."""
    ends = asyncio.Queue()

    async def converse(websocket):
        end = FarEnd(websocket)
        await end.greet(version, **terms)
        ends.put_nowait(end)
        await end.listen()

    async with serve(converse, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
        port = server.sockets[0].getsockname()[1]
        link = await open_link(
            parse_address(f"ws://token@127.0.0.1:{port}"), hello(version), capacity or link_capacity.LinkCapacity()
        )
        far = await ends.get()
        try:
            yield link, far
        finally:
            far.die()
            await link.close()


async def ended(link):
    async for _ in link.messages():
        pass


async def test_what_was_heard_is_forgotten():
    async with linked() as (link, far):
        listening = asyncio.create_task(ended(link))
        link.tell(ERROR)
        link.tell(REJECT)
        await until(lambda: not link.unacknowledged())
        assert far.heard == [ERROR, REJECT]
        listening.cancel()


async def test_what_is_posted_together_shares_a_frame():
    async with linked() as (link, far):
        beat, ready = Heartbeat(), Ready(slots=1)
        link.post(ready)
        link.post(beat)
        await until(lambda: len(far.heard) == 2)
        assert far.frames == 1
        assert far.heard == [beat, ready]  # a heartbeat overtakes


async def test_an_older_farm_gets_each_message_in_a_frame_of_its_own():
    async with linked(version=1) as (link, far):
        link.post(Ready(slots=1))
        link.post(Ready(slots=2))
        await until(lambda: len(far.heard) == 2)
        assert far.frames == 2


async def test_a_batch_of_the_farms_is_read_message_by_message():
    async with linked() as (link, far):
        said = [Cancel(assignment_id="a1", fence=1), Bye(reason="enough")]
        await far.websocket.send(join([encode(m) for m in said]))
        assert [m async for m in link.messages()] == said
        assert link.farewell == "enough"


async def test_what_waits_goes_out_before_the_last_word():
    async with linked() as (link, far):
        link.tell(ERROR)
        await link.close(Bye(reason="done"))
        await until(lambda: len(far.heard) == 2)
        assert far.heard == [ERROR, Bye(reason="done")]


async def test_a_connection_that_needs_long_for_a_frame_carries_smaller_updates(monkeypatch):
    async with linked() as (link, far):
        assert link.room_bytes == link.welcome.inline_bytes
        monkeypatch.setattr(link_capacity, "MOMENT_SECONDS", 0.0)  # any time is too long
        link.tell(ERROR.model_copy(update={"traceback": "x" * 20_000}))
        await until(lambda: far.heard)
        assert link.room_bytes == link_capacity.LEAST_BYTES


async def test_a_link_that_broke_behind_a_large_frame_is_remembered_as_slow(monkeypatch):
    """Else the next connection would carry the same frame, and break in the same way."""
    monkeypatch.setattr(link_capacity, "MOMENT_SECONDS", 0.0)
    capacity = link_capacity.LinkCapacity()
    async with linked(capacity=capacity) as (link, far):
        far.be_deaf()
        for _ in range(30):
            link.post(ERROR.model_copy(update={"traceback": "x" * 20_000}))
        far.die()
        await ended(link)
        await link.close()
    async with linked(capacity=capacity) as (link, _):
        assert link.room_bytes == link_capacity.LEAST_BYTES


async def test_what_was_sent_and_not_read_before_the_end_is_named():
    async with linked() as (link, far):
        far.be_deaf()
        link.tell(ERROR)
        await link._flush()
        link.tell(REJECT)
        await link._flush()
        far.die()
        await ended(link)
        assert link.unacknowledged() == [ERROR, REJECT]


async def test_what_was_told_to_a_dead_connection_is_named():
    async with linked() as (link, far):
        far.die()
        await ended(link)
        link.tell(ERROR)
        assert link.unacknowledged() == [ERROR]


@pytest.mark.parametrize("code", [1000, 1012])
async def test_what_crosses_the_farms_close_is_named(code):
    async with linked() as (link, far):
        far.send_close(code)  # nobody has read it here yet
        link.tell(ERROR)
        await ended(link)
        assert link.unacknowledged() == [ERROR]


async def test_what_is_too_long_for_this_farm_is_said_in_shorter_frames():
    """A server may be set to frames of 64 KiB: no batch of lines, and no traceback, may end its agents."""
    async with linked(max_frame_bytes=LEAST_FRAME_BYTES, inline_bytes=2**60) as (link, far):
        assert link.room_bytes == LEAST_FRAME_BYTES // 2
        lines = tuple(LogLine(text=f"{number} " + "\N{SNOWMAN}" * 1900) for number in range(200))
        points = tuple(MetricPoint(name=f"m{number}", value=1.0) for number in range(200))
        where = AssignmentProgress(assignment_id="a1", fence=1, phase="computing")
        link.tell(Progress(progress=where, logs=lines, metrics=points))
        link.tell(ERROR.model_copy(update={"traceback": "\N{SNOWMAN}" * 20_000, "message": "\N{SNOWMAN}" * 4000}))
        await until(lambda: far.heard and isinstance(far.heard[-1], Error))
        said = [message for message in far.heard if isinstance(message, Progress)]
        assert tuple(line for message in said for line in message.logs) == lines
        assert tuple(point for message in said for point in message.metrics) == points
        assert far.heard[-1].message.startswith("\N{SNOWMAN}" * 100)


def terms(name, value):
    """A welcome of version 2 with one odd value, as a broken or hostile farm may send it."""
    return msgpack.packb({"type": "welcome", "version": 2, "incarnation": 1, name: value})


ODD_NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -1.0,
    0,
    1,
    1e308,
    2**63,
    2**64 - 1,
    -(2**63),
    5e-324,
    None,
    "2",
    True,
]


@pytest.mark.parametrize("value", ODD_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    "name",
    ["heartbeat_seconds", "progress_seconds", "lost_after_seconds", "max_frame_bytes", "inline_bytes", "incarnation",
     "version"],
)  # fmt: skip
async def test_an_odd_number_in_a_welcome_is_bounded_or_a_reason_to_try_again(name, value):
    async def converse(websocket):
        await websocket.recv()
        await websocket.send(terms(name, value))
        await websocket.wait_closed()

    async with serve(converse, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
        address = parse_address(f"ws://token@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        link = refused = None
        try:
            link = await open_link(address, hello(2), link_capacity.LinkCapacity())
        except OutOfReach as error:
            refused = error
        if link is None:
            assert refused.message
            assert not refused.was_slow  # it is told from silence at once
            return
        intervals = HeartbeatIntervals.told(link.welcome)
        assert MIN_PACE_SECONDS <= intervals.step_seconds <= MAX_PACE_SECONDS
        assert 0 <= link.room_bytes <= link.welcome.max_frame_bytes
        link.post(Heartbeat())
        link.post(ERROR)
        await link.close(Bye())


async def test_who_waits_for_work_pings_as_seldom_as_it_beats_and_who_works_does_not():
    """In a crowd pings were most of what a farm heard from clients without work."""
    pace = Pace(heartbeat_seconds=2.0, progress_seconds=0.5, lost_after_seconds=8.0, idle_heartbeat_seconds=45.0)
    progress = AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)
    async with linked() as (link, far):
        link.post(Heartbeat())
        assert link._websocket.ping_interval == PING_SECONDS
        await far.websocket.send(encode(pace))
        async for message in link.messages():
            assert message == pace
            break
        link.post(Heartbeat())
        assert link._websocket.ping_interval == 45.0
        link.post(Heartbeat(assignments=(progress,)))
        assert link._websocket.ping_interval == PING_SECONDS


async def test_a_farm_that_breaks_the_protocol_is_named_as_the_reason():
    async with linked() as (link, far):
        for _ in range(3):
            await far.websocket.send(msgpack.packb({"type": "pace", "heartbeat_seconds": math.nan}))
        await ended(link)
        assert "broke the protocol: pace" in link.farewell


@given(st.floats(), st.floats())
def test_no_pace_is_too_odd(heartbeat_seconds, progress_seconds):
    pace = Pace.model_construct(
        heartbeat_seconds=heartbeat_seconds, progress_seconds=progress_seconds, lost_after_seconds=1.0
    )
    assert MIN_PACE_SECONDS <= HeartbeatIntervals.told(pace).step_seconds <= MAX_PACE_SECONDS


async def test_a_link_that_cannot_write_does_not_stay_open(monkeypatch):
    """Whatever the library raises: a client that is not heard would be lost, and wait for orders for ever."""
    async with linked() as (link, _):

        async def fail(_frame):
            raise RuntimeError("unable to perform operation on <TCPTransport closed>")

        monkeypatch.setattr(link._websocket, "send", fail)
        link.post(ERROR)
        async with asyncio.timeout(5):
            await ended(link)
        assert "unable to perform" in link.reason.message
