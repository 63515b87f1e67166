"""Light clients beat and hold as the agent does: the link is scripted, the clock is the loop's own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from benchmarks import light_client
from benchmarks.light_client import LightClient
from farm_client.agent.errors import OutOfReach
from protocol.assignments import Accept, Assign, Cancel, Result, Slice
from protocol.digests import digest_bytes
from protocol.messages import Heartbeat, Pace, Ready, Welcome
from protocol.tasks import BlobRef, Shard, TaskBrief

LONG, SHORT = 60.0, 0.05
CODE = BlobRef(digest=digest_bytes(b"code"), size_bytes=4)
TASK = TaskBrief(
    task_id="t",
    name="t",
    mode="gradients",
    code=CODE,
    entry="train.py",
    config={},
    seed=0,
    batch_samples=1,
    dataset_kind="code",
)
ASSIGN = Assign(
    assignment_id="a1",
    fence=7,
    kind="train",
    task=TASK,
    round=0,
    epoch=0,
    weights=CODE,
    slices=(Slice(shard=Shard(index=0, samples=2), start=0, stop=2),),
    lease_seconds=60.0,
)


class FakeLink:
    """Takes what is said, and says what it is told to."""

    def __init__(self, heartbeat_seconds: float, idle_heartbeat_seconds: float) -> None:
        self.welcome = Welcome(
            version=2,
            incarnation=1,
            heartbeat_seconds=heartbeat_seconds,
            idle_heartbeat_seconds=idle_heartbeat_seconds,
        )
        self.reason = OutOfReach("the script is over")
        self.said = []
        self._heard = asyncio.Event()
        self.tells: asyncio.Queue[object] = asyncio.Queue()

    def post(self, message) -> None:
        self.said.append(message)
        self._heard.set()

    async def messages(self):
        while (message := await self.tells.get()) is not None:
            yield message

    async def close(self, _bye=None) -> None:
        pass

    def beats(self):
        return [message for message in self.said if isinstance(message, Heartbeat)]

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._heard.clear()
                await self._heard.wait()


@pytest.fixture
def work(monkeypatch):
    """Have a client at work over a fake link for the length of a block."""
    hellos = []

    @asynccontextmanager
    async def working(link, client=None):
        async def open_link(_address, hello, _carried):
            hellos.append(hello)
            return link

        monkeypatch.setattr(light_client, "open_link", open_link)
        async with (client or a_client()).joined() as connection, asyncio.TaskGroup() as group:
            task = group.create_task(connection.work())
            yield hellos
            task.cancel()

    return working


def a_client(make_update=None):
    return LightClient("ws://token@127.0.0.1:1", "ada", make_update)


async def test_the_first_beat_comes_at_once_and_the_next_ones_as_often_as_the_farm_asks(work):
    lazy, keen = FakeLink(SHORT, LONG), FakeLink(SHORT, SHORT)
    async with work(lazy), work(keen):
        await keen.until(lambda: len(keen.beats()) == 4)
        assert len(lazy.beats()) == 1
        assert lazy.said[-1] == Ready(slots=1)


async def test_a_new_pace_counts_at_once(work):
    link = FakeLink(LONG, LONG)
    async with work(link):
        await link.until(link.beats)
        link.tells.put_nowait(
            Pace(heartbeat_seconds=LONG, progress_seconds=1, lost_after_seconds=LONG, idle_heartbeat_seconds=SHORT)
        )
        await link.until(lambda: len(link.beats()) == 3)


async def test_who_holds_something_beats_more_often_and_gets_on_until_it_is_cancelled(work):
    link, client = FakeLink(SHORT, LONG), a_client()
    async with work(link, client):
        await link.until(link.beats)
        link.tells.put_nowait(ASSIGN)
        await link.until(lambda: Accept(assignment_id="a1", fence=7) in link.said)
        await link.until(lambda: len(link.beats()) == 4)
        assert [progress.samples_done for beat in link.beats() for progress in beat.assignments] == [1, 2, 2]
        link.tells.put_nowait(Cancel(assignment_id="a1", fence=7))
        await link.until(lambda: not link.beats()[-1].assignments)
        assert client.held == {}


async def test_what_is_held_is_named_in_the_next_hello(work):
    client, first, second = a_client(), FakeLink(SHORT, LONG), FakeLink(SHORT, LONG)
    async with work(first, client):
        first.tells.put_nowait(ASSIGN)
        await first.until(lambda: first.beats() and first.beats()[-1].assignments)
    async with work(second, client) as hellos:
        await second.until(second.beats)
        assert second.said[0] == Ready(slots=0)
        assert [beat.assignments[0].assignment_id for beat in second.beats()] == ["a1"]
    assert [[held.assignment_id for held in hello.held] for hello in hellos] == [[], ["a1"]]


async def test_an_update_is_delivered_once_and_one_that_a_connection_interrupts_is_forgotten(work):
    may_go_on = asyncio.Event()

    async def make_update(_assign):
        await may_go_on.wait()
        return CODE

    client, first, second = a_client(make_update), FakeLink(SHORT, LONG), FakeLink(SHORT, LONG)
    async with work(first, client):
        first.tells.put_nowait(ASSIGN)
        await first.until(lambda: client.held)
    assert client.held == {}
    may_go_on.set()
    async with work(second, client):
        second.tells.put_nowait(ASSIGN)
        await second.until(lambda: client.results)
    assert [message.fence for message in second.said if isinstance(message, Result)] == [7]
    assert not any(isinstance(message, Result) for message in first.said)


async def test_work_ends_with_the_reason_why_the_connection_did(monkeypatch):
    link = FakeLink(SHORT, LONG)
    link.tells.put_nowait(None)

    async def open_link(*_):
        return link

    monkeypatch.setattr(light_client, "open_link", open_link)
    async with a_client().joined() as connection:
        with pytest.raises(OutOfReach, match="the script is over"):
            await connection.work()
