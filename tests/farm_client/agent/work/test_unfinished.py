"""An agent goes on with what a former process left unfinished, unless its farm has given it to somebody else."""

import os
import signal

from protocol.assignments import Cancel, Kind, Progress, Reject, Result
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until


def kept(home):
    return sorted(path.suffix for path in (home / "snapshots").rglob("*") if path.is_file())


async def began(farm, home):
    """Give the next client an assignment, and wait until a snapshot of it is kept."""
    peer = await joined(farm)
    assign = farm.assign(farm.task(doing="snapshot"))
    await peer.send(assign)
    await until(lambda: kept(home) == [".assign", ".state"])
    return assign, peer


async def test_a_restarted_agent_goes_on_from_the_snapshot(farm, start_agent, home):
    async with start_agent():
        assign, _ = await began(farm, home)
    assert kept(home) == [".assign", ".state"]
    async with start_agent():
        peer = await farm.next_client()
        hello = await peer.welcome()
        assert [(h.assignment_id, h.fence, h.finished) for h in hello.held] == [
            (assign.assignment_id, assign.fence, False)
        ]
        result = await peer.expect(Result)
        lines = [line.text for message in peer.log if isinstance(message, Progress) for line in message.logs]
    assert (result.assignment_id, result.fence) == (assign.assignment_id, assign.fence)
    assert "going on from half of it" in lines
    assert kept(home) == []


async def test_what_the_farm_cancels_at_the_welcome_is_dropped(farm, start_agent, home):
    async with start_agent():
        assign, _ = await began(farm, home)
    async with start_agent():
        peer = await farm.next_client()
        await peer.welcome()
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        await until(lambda: kept(home) == [])
        await peer.send(farm.assign(farm.task("another")))
        result = await peer.expect(Result)
        while result.assignment_id == assign.assignment_id:  # it was done before the cancel came
            result = await peer.expect(Result)


async def test_a_cancel_drops_the_snapshot(farm, start_agent, home):
    async with start_agent():
        assign, peer = await began(farm, home)
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        await until(lambda: kept(home) == [])


async def test_who_leaves_hands_the_work_back_and_keeps_nothing(farm, start_agent, home):
    async with start_agent(drain_seconds=0.0):
        assign, peer = await began(farm, home)
        os.kill(os.getpid(), signal.SIGINT)
        assert (await peer.expect(Reject)).assignment_id == assign.assignment_id
        await until(lambda: kept(home) == [])


async def test_an_evaluation_has_none(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), kind=Kind.EVALUATE))
        await peer.expect(Result)
    assert kept(home) == []


async def test_the_executor_after_a_killed_one_goes_on_from_the_snapshot(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="snapshot", dies=True))
        await peer.send(assign)
        assert (await peer.expect(Result)).assignment_id == assign.assignment_id
        lines = [line.text for message in peer.log if isinstance(message, Progress) for line in message.logs]
    assert "going on from half of it" in lines
    assert kept(home) == []


async def test_without_an_interval_no_place_is_given_for_snapshots(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task(doing="print_snapshot_path").model_copy(update={"snapshot_seconds": 0.0})
        await peer.send(farm.assign(task))
        await peer.expect(Result)
        lines = [line.text for message in peer.log if isinstance(message, Progress) for line in message.logs]
    assert "snapshots go to None" in lines
