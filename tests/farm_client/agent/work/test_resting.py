"""A pause of the owner's in the midst of work: processes end, what they did is kept, and it is counted later."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from farm_client.agent.owner.control import ask
from farm_client.agent.owner.reasons import MOST_FAILURES
from farm_client.agent.reporting.status import read_status
from protocol.assignments import Accept, Cancel, Reject, RejectCode, Result
from protocol.messages import Error, Heartbeat, Pause, Ready, Resume
from protocol.wanted_work import WantedWork
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone, until


async def told(home, **request):
    return await asyncio.to_thread(ask, home / "control.sock", request)


def executors():
    """The executors of this test's agent, which runs in this very process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended since it was listed
            found += [process] if "fake_executor" in " ".join(process.cmdline()) else []
    return found


def snapshots(home, kind):
    return list((home / "snapshots").rglob(f"*.{kind}"))


@pytest.fixture
def long_task(farm):
    """A task whose fake executor writes a snapshot, and waits; gone on from, it is done at once."""
    task = farm.task(doing="snapshot")
    return task.model_copy(update={"snapshot_seconds": 1.0})


async def begun(farm, home, task):
    """Have an agent begin an assignment, until it has a snapshot; return the farm's side and the assignment."""
    peer = await joined(farm)
    assign = farm.assign(task)
    await peer.send(assign)
    await until(lambda: snapshots(home, "assign"))
    return peer, assign


async def test_a_pause_ends_every_executor_and_what_it_did_is_counted_after_it(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        running = executors()
        assert running
        await told(home, do="pause")
        assert "paused by this machine's owner" in (await peer.expect(Pause)).reason
        for process in running:
            await gone(process.pid)
        await until(lambda: not executors())
        seen = len(peer.log)
        await until(lambda: sum(isinstance(m, Heartbeat) for m in peer.log[seen:]) >= 3)
        beat = next(m for m in reversed(peer.log) if isinstance(m, Heartbeat))
        assert [a.assignment_id for a in beat.assignments] == [assign.assignment_id]
        assert read_status(home / "status.json").doing.startswith("not working: paused")
        assert executors() == []  # no spare took their place
        await told(home, do="resume")
        await peer.expect(Resume)
        result = await peer.expect(Result)
        assert (result.assignment_id, result.fence) == (assign.assignment_id, assign.fence)
        assert any("going on from half of it" in line.text for m in peer.log for line in getattr(m, "logs", ()))
    assert snapshots(home, "*") == []


async def test_what_the_farm_takes_back_meanwhile_is_forgotten(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        await told(home, do="pause")
        await until(lambda: not executors())
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence, reason="its lease is over"))
        await until(lambda: not snapshots(home, "*"))
        await told(home, do="resume")
        await peer.expect(Resume)
        again = farm.assign(farm.task("task2"))
        await peer.send(again)
        assert (await peer.expect(Result)).assignment_id == again.assignment_id


async def test_a_pause_that_outlasts_the_lease_hands_the_work_back_at_once(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        await told(home, do="pause", seconds=assign.lease_seconds + 60)
        rejected = await peer.expect(Reject)
        assert (rejected.assignment_id, rejected.code) == (assign.assignment_id, RejectCode.PAUSED)
        assert "paused by this machine's owner until" in rejected.message
        await until(lambda: not executors())
    assert snapshots(home, "*") == []


async def test_nothing_is_fetched_while_it_rests(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await told(home, do="pause")
        await peer.expect(Pause)
        before = list(farm.requests)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000, inline=False))
        assert (await peer.expect(Reject)).code is RejectCode.PAUSED
        assert farm.requests == before
        await until(lambda: not executors())


async def test_a_pause_and_a_resume_right_after_it_lose_nothing(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        for _ in range(3):
            await told(home, do="pause")
            await told(home, do="resume")
        assert (await peer.expect(Result)).assignment_id == assign.assignment_id
        await until(executors)


async def test_a_paused_agent_that_is_started_again_goes_on_when_its_owner_resumes(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        await told(home, do="pause")
        await until(lambda: not executors())
    async with start_agent():
        peer = await farm.next_client()
        hello = await peer.welcome(incarnation=2)
        assert [held.assignment_id for held in hello.held] == [assign.assignment_id]
        await peer.expect(Pause)
        assert executors() == []
        await told(home, do="resume")
        assert (await peer.expect(Result)).assignment_id == assign.assignment_id


async def test_finish_waits_for_what_is_held(farm, start_agent, home, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with start_agent() as life:
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="wait", gate=str(gate)))
        await peer.send(assign)
        await peer.expect(Accept)
        await told(home, do="finish")
        await peer.send(farm.assign(farm.task("task2")))
        assert (await peer.expect(Reject)).code is RejectCode.DRAINING
        assert not life.done()
        await asyncio.to_thread(Path(gate).write_bytes, b"go")
        await peer.acknowledge(await peer.expect(Result))
        async with asyncio.timeout(30):
            await life


async def test_finish_while_paused_hands_back_and_ends(farm, start_agent, home, long_task):
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(long_task))
        await until(lambda: snapshots(home, "assign"))
        await told(home, do="pause")
        await until(lambda: not executors())
        await told(home, do="finish")
        assert (await peer.expect(Reject)).code is RejectCode.PAUSED
        async with asyncio.timeout(30):
            await life


async def test_who_fails_again_and_again_pauses_itself_until_the_owner_resumes(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        for number in range(MOST_FAILURES):
            await peer.send(farm.assign(farm.task(f"task{number}", doing="out_of_memory")))
            assert (await peer.expect(Error)).code == "out_of_memory"
        told_farm = (await peer.expect(Pause)).reason
        assert told_farm.startswith(f"failures: {MOST_FAILURES} assignments in a row failed on this machine")
        assert "no memory" in told_farm
        assert "farm-client resume" in told_farm
        await told(home, do="resume")
        await peer.expect(Resume)
        await peer.send(farm.assign(farm.task("good")))
        await peer.expect(Result)


async def test_the_researcher_s_own_mistakes_pause_nobody(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        for number in range(MOST_FAILURES + 1):
            await peer.send(farm.assign(farm.task(f"task{number}", doing="fail")))
            await peer.expect(Error)
        assert read_status(home / "status.json").rests == ()


async def test_work_for_somebody_whom_the_owner_has_just_left_out_is_handed_back(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        await told(home, do="set", changes={"work_for": ["somebody-else"]})
        await peer.expect(Resume)  # the farm asks again for what was refused before
        rejected = await peer.expect(Reject)
        assert (rejected.assignment_id, rejected.code) == (assign.assignment_id, RejectCode.OWNER)


async def test_a_choice_of_work_is_told_before_what_it_leaves_out_is_handed_back(farm, start_agent, home, long_task):
    async with start_agent():
        peer, assign = await begun(farm, home, long_task)
        await told(home, do="set", changes={"kinds": ["evaluate"]})
        rejected = await peer.expect(Reject)
        assert (rejected.assignment_id, rejected.code) == (assign.assignment_id, RejectCode.OWNER)
        assert "its owner wants evaluate done, not train" in rejected.message
        before = peer.log[: peer.log.index(rejected)]
        assert WantedWork(kinds=("evaluate",)) in [m.wanted for m in before if isinstance(m, Ready)]
        await peer.close()
        peer = await joined(farm)
        heard = [message.wanted for message in peer.log if isinstance(message, Ready)]
        assert heard[0] == WantedWork(kinds=("evaluate",)), "another connection hears it at once"
        assert set(heard[1:]) <= {None}, "and once"
