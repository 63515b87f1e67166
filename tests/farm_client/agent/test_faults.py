"""Faults at each of the client's places, on real processes: nothing finished is lost, and every cause is told."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from protocol.assignments import Cancel, Kind, Progress, Result
from protocol.messages import Error, Pause, Ready
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.test_reconnecting import hello_of, waiting
from tests.farm_client.agent.waiting import gone, until
from tests.injection.client import BreakableLaunch, BreakableParts
from tests.injection.places import Places
from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE, Fault, parse_faults

LARGE = b"w" * 5000
"""Weights whose update is over the scripted farm's inline limit."""
HUGE = b"w" * 3_000_000
"""Weights whose update goes in parts."""


def breaking(plan):
    """Wrap an agent's parts so that they break as planned."""
    return BreakableParts(Places(parse_faults(plan)))


@asynccontextmanager
async def agent_process(farm, home, **environment):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.farm_client.agent.agent_process", farm.url, str(home)),
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def notes_in(peer):
    return [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs if line.stream == "agent"]


def scratch_of_executors(home):
    return list((home / "scratch").glob("executor-*"))


@pytest.mark.parametrize(
    ("place", "weights", "survives"),
    [
        (Fault.CLIENT_BEFORE_SEND, b"weights", False),
        (Fault.CLIENT_SLOW, b"weights", True),
        (Fault.CLIENT_WHILE_SENDING, b"weights", True),
        (Fault.CLIENT_WHILE_SENDING, LARGE, True),
        (Fault.CLIENT_WHILE_SENDING, HUGE, True),
        (Fault.CLIENT_AFTER_SEND, LARGE, True),
    ],
)
async def test_a_killed_agent_finds_what_it_finished(farm, home, place, weights, survives):
    async with agent_process(farm, home, **{FAULTS_VARIABLE: f"{place}@1:kill"}) as first:
        peer = await joined(farm)
        task = farm.task()
        await peer.send(farm.assign(task))
        await peer.acknowledge(await peer.expect(Result))
        lost = farm.assign(task, weights=weights, round_number=1)
        await peer.send(lost)
        assert await first.wait() == -signal.SIGKILL
    async with agent_process(farm, home):
        peer = await joined(farm, incarnation=2)
        held = [(x.assignment_id, x.finished) for x in hello_of(peer).held]
        assert held == ([(lost.assignment_id, True)] if survives else [])
        if survives:
            result = await peer.expect(Result)
            update = result.update.inline or farm.blobs[result.update.digest]
            assert update == weights + b"-shard"
            await peer.acknowledge(result)
            await until(lambda: not waiting(home))


async def test_a_lost_acknowledgement_is_asked_for_again(farm, start_agent, home):
    async with start_agent(wrap=breaking("client_reply_lost@4:lose")):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), round_number=4))
        first = await peer.expect(Result)
        await peer.acknowledge(first)
        await peer.send(farm.assign(farm.task("task2"), round_number=5))
        await peer.acknowledge(await peer.expect(Result))
        await until(lambda: len(waiting(home)) == 1)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        again = await peer.expect(Result)
        assert again == first
        await peer.acknowledge(again)
        await until(lambda: not waiting(home))


async def test_a_connection_cut_after_sending_sends_again(farm, start_agent):
    async with start_agent(wrap=breaking("client_after_send@0:lose")):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        first = await peer.expect(Result)
        peer = await joined(farm, incarnation=2)
        assert await peer.expect(Result) == first


@pytest.mark.parametrize("weights", [LARGE, HUGE])
async def test_an_upload_that_is_cut_midway_is_tried_again(farm, start_agent, weights):
    async with start_agent(wrap=breaking("client_while_sending@0:lose")):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=weights))
        result = await peer.expect(Result)
    assert farm.blobs[result.update.digest] == weights + b"-shard"


async def test_a_slow_client_beats_on(farm, start_agent):
    async with start_agent(wrap=breaking("client_slow@0:hang")):
        peer = await joined(farm)
        assign = farm.assign(farm.task())
        await peer.send(assign)
        await peer.expect(Progress)
        await until(lambda: any(x.phase == "uploading" for m in peer.log for x in getattr(m, "assignments", ())))
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        await peer.expect(Ready)
        await peer.send(farm.assign(farm.task("task2"), round_number=1))
        assert (await peer.expect(Result)).update.inline == b"weights-shard"


async def test_an_error_before_sending_is_reported(farm, start_agent):
    async with start_agent(wrap=breaking("client_before_send@0:raise")):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), kind=Kind.EVALUATE))
        await peer.expect(Result)  # evaluations pass all places
        await peer.send(farm.assign(farm.task()))
        assert (await peer.expect(Error)).code == "injected_fault"


@pytest.mark.parametrize(
    ("config", "cause"),
    [({"signal": "SIGSEGV"}, "SIGSEGV"), ({"signal": "SIGKILL"}, "SIGKILL"), ({"signal": "SIGABRT"}, "SIGABRT")],
)
@pytest.mark.parametrize("warm", [False, True])
async def test_an_executor_that_dies_is_replaced_once_and_its_cause_told(
    farm, start_agent, tmp_path, config, cause, warm
):
    marker = tmp_path / "died"
    async with start_agent():
        peer = await joined(farm)
        task = farm.task(doing="die_once", marker=str(marker), **config)
        if warm:  # it holds the weights, which a new one must be given again
            marker.touch()
            await peer.send(farm.assign(task, weights=LARGE, inline=False))
            await peer.acknowledge(await peer.expect(Result))
            marker.unlink()
        await peer.send(farm.assign(task, weights=LARGE, inline=False))
        result = await peer.expect(Result)
        assert farm.blobs[result.update.digest] == LARGE + b"-shard"
        assert [cause in note and "begins again" in note for note in notes_in(peer)] == [True]


async def test_an_executor_that_dies_twice_is_a_failure(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="exit", code=3)))
        error = await peer.expect(Error)
        assert error.code == "exited"
        assert len([note for note in notes_in(peer) if "code 3" in note]) == 1


async def test_an_executor_that_talks_nonsense_is_not_tried_again(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="garbage")))
        assert (await peer.expect(Error)).code == "bad_report"
        assert notes_in(peer) == []


@pytest.mark.parametrize("order", ["pause", "cancel"])
async def test_a_pause_leaves_no_process_and_no_file_in_mid_step(farm, start_agent, tmp_path, home, order):
    pid_file = tmp_path / "pid"
    async with start_agent(slots=2):
        peer = await joined(farm)
        task = farm.task(doing="hang_later", pid_file=str(pid_file))
        await peer.send(farm.assign(task, weights=LARGE))
        await peer.expect(Result)  # its update waits in the outbox
        assign = farm.assign(task, weights=LARGE, round_number=1)
        await peer.send(assign)
        await until(lambda: pid_file.exists() and pid_file.read_text())
        busy = {int(pid_file.read_text()), *executors_of(task_folders(home))}
        async with asyncio.timeout(2):
            if order == "cancel":
                await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
            for ended in [x for x in peer.log if isinstance(x, Result)]:
                await peer.acknowledge(ended)
            await peer.send(Pause(task_id="task1"))
            await asyncio.gather(*(gone(pid) for pid in busy))
            await until(lambda: not task_folders(home))
            await until(lambda: not [path for path in (home / "outbox").rglob("*") if path.is_file()])
    assert not any((home / "scratch").iterdir())


def task_folders(home):
    """The scratch folders of executors that have a task's code."""
    return [folder for folder in scratch_of_executors(home) if (folder / "code").exists()]


def executors_of(folders):
    children = psutil.Process().children()
    return {child.pid for child in children if any(Path(child.cwd()).is_relative_to(folder) for folder in folders)}


async def test_leaving_does_not_wait_for_the_round_to_end(farm, start_agent, home):
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(4):  # not the 20 s that computing may take
            await life
    assert len(waiting(home)) == 1


async def test_leaving_without_a_connection_finishes_into_the_outbox(farm, start_agent, home, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="wait", gate=str(gate))))
        await peer.expect(Progress)
        farm.refuse_status = 503
        await peer.close(1012)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.to_thread(gate.write_bytes, b"")
        await life
    assert len(waiting(home)) == 1


def test_executors_inherit_the_plan_and_what_is_spent(monkeypatch, tmp_path):
    launch = BreakableLaunch(tmp_path, 1)
    assert launch.environment(tmp_path, 3).keys().isdisjoint({FAULTS_VARIABLE, SPENT_VARIABLE})
    monkeypatch.setenv(FAULTS_VARIABLE, "executor_before:kill")
    inherited = launch.environment(tmp_path, 3)
    assert (inherited[FAULTS_VARIABLE], inherited[SPENT_VARIABLE]) == ("executor_before:kill", str(tmp_path / "faults"))
