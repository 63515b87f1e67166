"""Work outlives its connection: what runs goes on, what is finished waits in the outbox, and hello names both."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from farm_client.agent.connection.link import Link
from protocol.assignments import Accept, Cancel, Kind, Progress, Result
from protocol.messages import Error, Heartbeat, HeldAssignment, Ready
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone, until


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


async def open_gate(gate):
    """Let the executor that waits for it go on."""
    await asyncio.to_thread(gate.write_bytes, b"")


@asynccontextmanager
async def unreachable(farm, peer):
    """Cut the connection, and refuse new ones for the length of a block."""
    farm.refuse_status = 503
    await peer.close(1012)
    yield
    farm.refuse_status = None


def waiting(home):
    return list((home / "outbox").glob("*/*.result"))


def hello_of(peer):
    return peer.log[0]


async def test_what_runs_goes_on_under_the_next_connection(farm, start_agent, gate):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="wait", gate=str(gate)))
        await peer.send(assign)
        await peer.expect(Progress)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        assert hello_of(peer).held == (HeldAssignment(assignment_id=assign.assignment_id, fence=assign.fence),)
        assert [x.assignment_id for x in (await peer.expect(Heartbeat)).assignments] == [assign.assignment_id]
        await open_gate(gate)
        result = await peer.expect(Result)
        assert (result.assignment_id, result.fence) == (assign.assignment_id, assign.fence)
        assert result.update.inline == b"weights-shard"


async def test_a_busy_slot_is_not_offered_after_coming_back(farm, start_agent, gate):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="wait", gate=str(gate))))
        await peer.expect(Progress)
        await peer.close(1012)
        peer = await farm.next_client()
        await peer.welcome(incarnation=2)
        assert (await peer.expect(Ready)).slots == 0


async def test_what_nobody_waits_for_any_more_is_cancelled(farm, start_agent, tmp_path):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid")))
        await peer.send(assign)
        await peer.expect(Progress)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        assert (await peer.expect(Ready)).slots == 1
        await gone(int((tmp_path / "pid").read_text()))


async def test_what_finished_meanwhile_is_named_and_sent(farm, start_agent, gate, home):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="wait", gate=str(gate)))
        await peer.send(assign)
        await peer.expect(Progress)
        async with unreachable(farm, peer):
            await open_gate(gate)
            await until(lambda: waiting(home))
        peer = await joined(farm, incarnation=2)
        assert [(x.assignment_id, x.finished) for x in hello_of(peer).held] == [(assign.assignment_id, True)]
        result = await peer.expect(Result)
        assert result.update.inline == b"weights-shard"
        await peer.acknowledge(result)
        await until(lambda: not waiting(home))


async def test_what_failed_meanwhile_is_told(farm, start_agent, gate, capsys):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="wait_and_fail", gate=str(gate)))
        await peer.send(assign)
        await peer.expect(Progress)
        async with unreachable(farm, peer):
            await open_gate(gate)
            await until(lambda: "boom" in capsys.readouterr().err)
        peer = await joined(farm, incarnation=2)
        assert [(x.assignment_id, x.finished) for x in hello_of(peer).held] == [(assign.assignment_id, False)]
        error = await peer.expect(Error)
        assert (error.assignment_id, error.message) == (assign.assignment_id, "boom")


@pytest.fixture
def slow_to_notice(monkeypatch):
    """Let the agent notice a connection's end only when the test says so."""
    may_notice, messages = asyncio.Event(), Link.messages

    async def late(link):
        async for message in messages(link):
            yield message
        await may_notice.wait()

    monkeypatch.setattr(Link, "messages", late)
    return may_notice


async def test_what_was_said_into_a_dying_connection_is_said_again(farm, start_agent, gate, capsys, slow_to_notice):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="print_and_fail", gate=str(gate)))
        await peer.send(assign)
        await peer.expect(Progress)
        await peer.close(1012)
        await open_gate(gate)
        await until(lambda: "boom" in capsys.readouterr().err)
        slow_to_notice.set()
        peer = await joined(farm, incarnation=2)
        assert [x.assignment_id for x in hello_of(peer).held] == [assign.assignment_id]
        assert (await peer.expect(Error)).message == "boom"
        said = [m for m in peer.log if isinstance(m, Progress | Error)]
        assert [line.text for message in said[:-1] for line in message.logs] == ["the last words"]


async def test_the_last_words_of_what_ended_offline_are_told(farm, start_agent, gate, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="print_and_train", gate=str(gate))))
        await peer.expect(Progress)
        async with unreachable(farm, peer):
            await open_gate(gate)
            await until(lambda: waiting(home))
        peer = await joined(farm, incarnation=2)
        await peer.expect(Result)
        said = [m for m in peer.log if isinstance(m, Progress | Result)]
        assert [line.text for message in said[:-1] for line in message.logs] == ["the last words"]


async def test_what_was_heard_is_not_said_again(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="fail")))
        await peer.expect(Error)
        peer.unread.clear()
        await peer.expect(Heartbeat)  # it was sent after the question whether the error arrived
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        assert hello_of(peer).held == ()
        await peer.expect(Heartbeat)
        assert not [m for m in peer.log if isinstance(m, Progress | Error)]


@pytest.mark.parametrize("kind", Kind)
async def test_a_result_is_sent_again_until_it_is_acknowledged(farm, start_agent, home, kind):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), kind=kind))
        first = await peer.expect(Result)
        for incarnation in (2, 3):
            await peer.close(1012)
            peer = await joined(farm, incarnation=incarnation)
            assert [x.finished for x in hello_of(peer).held] == [True]
            again = await peer.expect(Result)
            assert again == first
        await peer.acknowledge(again)
        await until(lambda: not waiting(home))
        await peer.close(1012)
        assert hello_of(await joined(farm, incarnation=4)).held == ()


async def test_a_result_outlives_its_agent(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000))
        first = await peer.expect(Result)
    async with start_agent():
        peer = await joined(farm)
        assert [x.assignment_id for x in hello_of(peer).held] == [first.assignment_id]
        again = await peer.expect(Result)
        assert again == first.model_copy(update={"stage_seconds": again.stage_seconds})
        await peer.acknowledge(first)
        await until(lambda: not waiting(home))
    assert not [path for path in (home / "outbox").rglob("*") if path.is_file()]


async def test_an_update_that_the_farm_has_is_not_uploaded_again(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000))
        await peer.expect(Result)
        before = len(farm.requests)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        await peer.expect(Result)
    assert [method for method, _ in farm.requests[before:]] == ["HEAD"]


async def test_an_update_that_the_farm_lost_is_uploaded_again(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000))
        result = await peer.expect(Result)
        await peer.close(1012)
        del farm.blobs[result.update.digest]
        peer = await joined(farm, incarnation=2)
        await peer.expect(Result)
        assert farm.blobs[result.update.digest] == b"w" * 5000 + b"-shard"


async def test_a_farm_that_takes_less_inline_gets_an_upload(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        result = await peer.expect(Result)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2, inline_bytes=4)
        slim = await peer.expect(Result)
        assert slim.update.inline is None
        assert farm.blobs[slim.update.digest] == result.update.inline


async def test_a_cancelled_result_is_forgotten(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000))
        result = await peer.expect(Result)
        await peer.send(Cancel(assignment_id=result.assignment_id, fence=result.fence))
        await until(lambda: not waiting(home))
        await peer.close(1012)
        assert hello_of(await joined(farm, incarnation=2)).held == ()
    assert not [path for path in (home / "outbox").rglob("*") if path.is_file()]


async def test_another_farm_hears_nothing_of_it(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
    farm.host = "localhost"  # the same port under another name: another farm
    async with start_agent():
        assert hello_of(await joined(farm)).held == ()
    assert len(waiting(home)) == 1


async def test_an_upload_goes_on_while_the_connection_is_away(farm, start_agent, home):
    farm.fail_uploads = 1
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(), weights=b"w" * 5000)
        await peer.send(assign)
        await peer.expect(Accept)
        await until(lambda: waiting(home))
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        result = await peer.expect(Result)
        assert result.assignment_id == assign.assignment_id
        await peer.acknowledge(result)
        await until(lambda: not waiting(home))
