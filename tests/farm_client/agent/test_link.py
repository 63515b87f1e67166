"""One connection by itself, with a farm's end that reads, or does not."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from farm_client.agent.address import parse_address
from farm_client.agent.link import open_link
from protocol import inline_limit
from protocol.codec import encode, join
from protocol.messages import Bye, Cancel, Error, Heartbeat, Hello, Ready, Reject, RejectCode, Welcome
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

    async def greet(self, version):
        self.session.receive(await self.websocket.recv())
        await self.websocket.send(self.session.send(Welcome(version=version, incarnation=1)))

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
async def linked(version=2, carried=None):
    """Return both ends of a connection."""
    ends = asyncio.Queue()

    async def converse(websocket):
        end = FarEnd(websocket)
        await end.greet(version)
        ends.put_nowait(end)
        await end.listen()

    async with serve(converse, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
        port = server.sockets[0].getsockname()[1]
        link = await open_link(
            parse_address(f"ws://token@127.0.0.1:{port}"), hello(version), carried or inline_limit.InlineLimit()
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
        await until(lambda: not link.untold())
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
        assert link.inline_bytes == link.welcome.inline_bytes
        monkeypatch.setattr(inline_limit, "MOMENT_SECONDS", 0.0)  # any time is too long
        link.tell(ERROR.model_copy(update={"traceback": "x" * 20_000}))
        await until(lambda: far.heard)
        assert link.inline_bytes == inline_limit.LEAST_BYTES


async def test_a_link_that_broke_behind_a_large_frame_is_remembered_as_slow(monkeypatch):
    """Else the next connection would carry the same frame, and break in the same way."""
    monkeypatch.setattr(inline_limit, "MOMENT_SECONDS", 0.0)
    carried = inline_limit.InlineLimit()
    async with linked(carried=carried) as (link, far):
        far.be_deaf()
        for _ in range(30):
            link.post(ERROR.model_copy(update={"traceback": "x" * 20_000}))
        far.die()
        await ended(link)
        await link.close()
    async with linked(carried=carried) as (link, _):
        assert link.inline_bytes == inline_limit.LEAST_BYTES


async def test_what_was_sent_and_not_read_before_the_end_is_named():
    async with linked() as (link, far):
        far.be_deaf()
        link.tell(ERROR)
        await link.flushed()
        link.tell(REJECT)
        await link.flushed()
        far.die()
        await ended(link)
        assert link.untold() == [ERROR, REJECT]


async def test_what_was_told_to_a_dead_connection_is_named():
    async with linked() as (link, far):
        far.die()
        await ended(link)
        link.tell(ERROR)
        assert link.untold() == [ERROR]


@pytest.mark.parametrize("code", [1000, 1012])
async def test_what_crosses_the_farms_close_is_named(code):
    async with linked() as (link, far):
        far.send_close(code)  # nobody has read it here yet
        link.tell(ERROR)
        await ended(link)
        assert link.untold() == [ERROR]
