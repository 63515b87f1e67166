import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.connection.heartbeat_interval import HeartbeatIntervals
from protocol.assignments import Progress, Result
from protocol.limits import MAX_PACE_SECONDS, MIN_PACE_SECONDS
from protocol.messages import Heartbeat, Pace, Welcome
from tests.farm_client.agent.scripted_farm import joined


def test_a_welcome_sets_the_pace_and_a_pace_replaces_it():
    assert HeartbeatIntervals.told(Welcome(version=2, incarnation=1)) == HeartbeatIntervals(2.0, 0.5, 2.0)
    told = Pace(heartbeat_seconds=10.0, progress_seconds=2.5, lost_after_seconds=24.0)
    assert HeartbeatIntervals.told(told) == HeartbeatIntervals(10.0, 2.5, 10.0)
    assert HeartbeatIntervals.told(told.model_copy(update={"idle_heartbeat_seconds": 40.0})) == HeartbeatIntervals(
        10.0, 2.5, 40.0
    )


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_no_farm_makes_a_client_hurry_or_sleep_for_ever(heartbeat, progress, idle):
    told = Pace(
        heartbeat_seconds=heartbeat, progress_seconds=progress, lost_after_seconds=1.0, idle_heartbeat_seconds=idle
    )
    intervals = HeartbeatIntervals.told(told)
    for seconds in (
        intervals.heartbeat_seconds,
        intervals.progress_seconds,
        intervals.step_seconds,
        intervals.idle_heartbeat_seconds,
    ):
        assert MIN_PACE_SECONDS <= seconds <= MAX_PACE_SECONDS


async def test_an_agent_beats_as_it_is_told(farm, start_agent):
    """With a heartbeat a minute there is one at the beginning; the others come because of the new pace."""
    async with start_agent():
        peer = await joined(farm, heartbeat_seconds=60.0)
        await peer.expect(Heartbeat)
        await peer.send(Pace(heartbeat_seconds=0.1, progress_seconds=0.1, lost_after_seconds=1.0))
        for _ in range(3):
            await peer.expect(Heartbeat)


async def test_an_agent_without_work_beats_less_often_until_it_is_offered_some(farm, start_agent, tmp_path):
    """It says once that it holds nothing, then waits a minute; with work it beats as the others, from the first."""
    async with start_agent():
        peer = await joined(farm, heartbeat_seconds=0.1, idle_heartbeat_seconds=60.0)
        assert not (await peer.expect(Heartbeat)).assignments
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await peer.expect(Heartbeat)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        for _ in range(3):
            assert (await peer.expect(Heartbeat)).assignments


async def test_an_agent_says_that_it_has_finished_and_then_beats_less_often(farm, start_agent):
    async with start_agent():
        peer = await joined(farm, heartbeat_seconds=0.1, idle_heartbeat_seconds=60.0)
        assert not (await peer.expect(Heartbeat)).assignments
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        while (await peer.expect(Heartbeat)).assignments:
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await peer.expect(Heartbeat)


@pytest.mark.parametrize("progress_seconds", [0.1, 60.0])
async def test_an_agent_reports_as_it_is_told(farm, start_agent, tmp_path, progress_seconds):
    async with start_agent():
        peer = await joined(farm, progress_seconds=progress_seconds)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        while not (beat := await peer.expect(Heartbeat)).assignments or not beat.assignments[0].samples_done:
            pass  # it has printed and measured by then
        await peer.expect(Heartbeat)
        await peer.expect(Heartbeat)
        reported = [m for m in peer.log if isinstance(m, Progress)]
        assert bool(reported) == (progress_seconds < 1)


async def test_a_report_and_a_heartbeat_that_are_due_together_share_a_frame(farm, start_agent, tmp_path):
    async with start_agent():
        peer = await joined(farm, heartbeat_seconds=0.2, progress_seconds=0.2)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        report = await peer.expect(Progress)
        (frame,) = [frame for frame in peer.frames if report in frame]
        assert [m.type for m in frame] == ["heartbeat", "progress"]
