"""Joining, leaving, coming back, and being refused, against a farm that a test plays."""

import asyncio
import os
import signal
import sys

import psutil
import pytest

from farm_client.agent.blobs.cache_view import look_into
from farm_client.agent.connection import reconnect_policy
from farm_client.agent.connection.address import parse_address
from farm_client.agent.daemon import Agent
from farm_client.agent.errors import BadAddress, HomeInUse, OutOfReach
from farm_client.agent.settings import load_settings
from farm_client.agent.work import worker
from protocol.assignments import Progress, Reject, Result
from protocol.compression import CodecName
from protocol.credit import CREDIT
from protocol.errors import OversizedFrame, Unauthorized, VersionMismatch
from protocol.messages import Bye, Drain, Error, Hello, Scope
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone, until


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


async def test_hello_tells_the_machine_and_its_lasting_identity(farm, start_agent):
    async with start_agent(cpu_cores=1, tags=("lab",), team="red"):
        first = await (await farm.next_client()).expect(Hello)
    async with start_agent():
        second = await (await farm.next_client()).expect(Hello)
    assert (first.name, first.tags, first.resources.cpu_cores) == ("tester", ("lab",), 1)
    assert (first.team, second.team) == ("red", "")
    assert CREDIT in first.features
    assert first.resources.bench_gflops > 0
    assert {*first.codecs, "none"} == set(CodecName)
    assert (first.client_id, first.client_secret) == (second.client_id, second.client_secret)


async def test_what_is_cached_is_told_at_the_next_join(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task())
        await peer.send(assign)
        await peer.expect(Result)
    async with start_agent():
        hello = await (await farm.next_client()).expect(Hello)
    assert assign.slices[0].shard.blob.digest in hello.cached


async def test_what_is_cached_is_known_by_its_task_and_by_what_it_cost(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(), inline=False)
        await peer.send(assign)
        await peer.expect(Result)
    (task,) = look_into(home / "cache")
    assert (task.task_id, task.name) == (assign.task.task_id, assign.task.name)
    assert task.warm_seconds > 0
    fetched = {blob.digest: blob.fetch_seconds for blob in task.blobs}
    assert fetched[assign.slices[0].shard.blob.digest] > 0


async def test_ctrl_c_finishes_what_computes_and_says_goodbye(farm, start_agent):
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        result = await peer.expect(Result)
        interrupt()
        await peer.expect(Drain)
        await peer.acknowledge(result)
        assert not (await peer.expect(Bye)).crashed
        await life


async def test_ctrl_c_hands_back_what_cannot_finish_in_time(farm, start_agent, tmp_path):
    async with start_agent() as life:
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid")))
        await peer.send(assign)
        await peer.expect(Progress)
        interrupt()
        reject = await peer.expect(Reject)
        assert (reject.assignment_id, reject.code) == (assign.assignment_id, "draining")
        await peer.expect(Bye)
        await life
        await gone(int((tmp_path / "pid").read_text()))


async def test_an_offer_that_crosses_the_drain_is_handed_back(farm, start_agent, tmp_path):
    async with start_agent() as life:
        peer = await joined(farm)
        task = farm.task(doing="hang", pid_file=str(tmp_path / "pid"))
        await peer.send(farm.assign(task))
        await peer.expect(Progress)
        interrupt()
        await peer.expect(Drain)
        late = farm.assign(task)
        await peer.send(late)
        while (reject := await peer.expect(Reject)).assignment_id != late.assignment_id:
            pass
        assert reject.code == "draining"
        await life


async def test_a_second_ctrl_c_stops_at_once(farm, start_agent, tmp_path):
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await peer.expect(Progress)
        interrupt()
        await peer.expect(Drain)
        interrupt()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(4):
                await life
        await gone(int((tmp_path / "pid").read_text()))


async def test_a_goodbye_of_the_farm_is_followed_by_a_new_connection(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(Bye(reason="restarting"))
        await joined(farm, incarnation=2)


async def test_a_farm_that_is_down_is_waited_for(farm, start_agent, capsys):
    farm.refuse_status = 503
    async with start_agent():
        await until(lambda: "waiting" in capsys.readouterr().err)
        farm.refuse_status = None
        await joined(farm)


def beat_wrongly(*_):
    raise RuntimeError("a mistake")


def speak_wrongly(*_):
    raise OversizedFrame("a mistake")


@pytest.mark.parametrize(("place", "wrong"), [("_beat_once", beat_wrongly), ("handle", speak_wrongly)])
async def test_an_error_of_the_agent_itself_ends_the_connection_and_not_the_agent(
    farm, start_agent, monkeypatch, capsys, place, wrong
):
    async with start_agent() as life:
        peer = await joined(farm)
        with monkeypatch.context() as broken:
            broken.setattr(worker.Worker, place, wrong)
            if place == "handle":
                await peer.send(farm.assign(farm.task()))
            bye = await peer.expect(Bye)
        assert bye.crashed
        assert "a mistake" in bye.reason
        peer = await joined(farm, incarnation=2)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        assert not life.done()
    assert wrong.__name__ in capsys.readouterr().err, "the traceback is in the log"


async def test_an_error_of_a_task_in_the_background_is_raised_once(farm, start_agent, monkeypatch):
    do, ended = worker.Worker._do, []

    async def end_wrongly_once(*arguments):
        await do(*arguments)
        ended.append(arguments)
        if len(ended) == 1:
            raise RuntimeError("a mistake")

    monkeypatch.setattr(worker.Worker, "_do", end_wrongly_once)  # a worker takes it at its making
    async with start_agent() as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        assert (await peer.expect(Bye)).crashed
        peer = await joined(farm, incarnation=2)
        await peer.send(farm.assign(farm.task("task2")))
        await peer.expect(Result)
        assert not life.done()


def refuse_wrongly(*_):
    raise RuntimeError("a mistake in path caf\udce9")


async def work_wrongly(*_):
    await asyncio.sleep(0)
    raise ExceptionGroup("side by side", [RuntimeError("a mistake in path caf\udce9")])


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("farm_client.agent.work.acceptance.refusal", refuse_wrongly),
        ("farm_client.agent.work.job.Job.do", work_wrongly),
        ("farm_client.agent.blobs.fetcher.Fetcher.fetch", work_wrongly),
        ("farm_client.agent.executors.executor_pool.ExecutorPool.take_new", work_wrongly),
        ("farm_client.agent.executors.executor.Executor.run", work_wrongly),
        ("farm_client.agent.home.outbox.Outbox.put", refuse_wrongly),
        ("farm_client.agent.work.deliveries.Deliveries.deliver", work_wrongly),
    ],
)
async def test_whatever_one_assignment_runs_into_is_its_failure_and_the_agent_works_on(
    farm, start_agent, monkeypatch, capsys, place, wrong
):
    async with start_agent() as life:
        peer = await joined(farm)
        with monkeypatch.context() as broken:
            broken.setattr(place, wrong)
            await peer.send(farm.assign(farm.task()))
            error = await peer.expect(Error)
        assert (error.code, error.scope, error.traceback) == ("agent_error", Scope.ELSEWHERE, None)
        assert "a mistake in path caf" in error.message
        await peer.send(farm.assign(farm.task("task2")))
        await peer.expect(Result)
        assert not life.done()
    assert wrong.__name__ in capsys.readouterr().err, "the traceback is in the log"


async def run_once(url, home, **options):
    async with asyncio.timeout(30):
        await Agent(parse_address(url), load_settings(home=home, **options), "nothing").run()


async def test_a_wrong_token_is_final(farm, home):
    with pytest.raises(Unauthorized, match="token"):
        await run_once(f"ws://wrong@127.0.0.1:{farm.port}", home)


@pytest.mark.parametrize(("status", "error"), [(404, BadAddress), (200, BadAddress), (403, Unauthorized)])
async def test_an_address_that_goes_on_without_a_farm_is_final(farm, home, monkeypatch, status, error):
    monkeypatch.setattr(reconnect_policy, "STRANGERS_SECONDS", 0.5)
    farm.refuse_status = status
    with pytest.raises(error, match="check the address"):
        await run_once(farm.url, home)


async def test_a_farm_of_another_version_is_final(farm, start_agent):
    async with start_agent() as life:
        peer = await farm.next_client()
        await peer.expect(Hello)
        await peer.send(Error(code="version_mismatch", message="upgrade the older", fatal=True))
        with pytest.raises(VersionMismatch, match="upgrade"):
            await life


async def test_the_owner_may_limit_the_wait(home, closed_port):
    with pytest.raises(OutOfReach, match="gave up"):
        await run_once(f"ws://127.0.0.1:{closed_port}", home, give_up_seconds=0.2)


async def test_a_second_agent_in_one_home_is_refused(farm, start_agent, home):
    async with start_agent():
        await joined(farm)
        with pytest.raises(HomeInUse, match="--home"):
            await run_once(farm.url, home)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_no_executor_outlives_the_agent_process(farm, home, number):
    """The real command with the real executor; SIGKILL leaves the agent no time to clean up."""
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "farm_client", "join", farm.url, "--home", str(home)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        peer = await joined(farm)
        executors = await until(lambda: psutil.Process(agent.pid).children(recursive=True))
        agent.send_signal(number)
        exit_code = await agent.wait()
        await asyncio.gather(*(gone(process.pid) for process in executors))
        assert exit_code == (0 if number == signal.SIGINT else -signal.SIGKILL)
        if number == signal.SIGINT:
            assert not any((home / "scratch").iterdir())
        async with asyncio.timeout(30):
            await peer.closed.wait()
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
