"""When executors are started, kept beside those at work, and waited for."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import psutil
import pytest

from farm_client.agent.executors import executor_pool
from farm_client.agent.executors.executor_pool import SPARE_RAM_BYTES, ExecutorPool, Keeping
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.process import Launch
from protocol.assignments import Result
from protocol.messages import Ready
from tests.farm_client.agent.conftest import FAKE_EXECUTOR
from tests.farm_client.agent.scripted_farm import ScriptedFarm, joined
from tests.farm_client.agent.waiting import until

COLD_EXECUTOR = "tests.farm_client.agent.cold_executor"
AT_ONCE = Keeping(fewest=2, idle_seconds=600, settled_seconds=0)


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def bundle(tmp_path):
    """The code of a task, as it lies in the cache, and the task."""
    farm = ScriptedFarm()
    task = farm.task()
    path = tmp_path / "bundle"
    path.write_bytes(farm.blobs[task.code.digest])
    return task, path


@pytest.fixture
def open_pool(scratch):
    @asynccontextmanager
    async def opened(module=FAKE_EXECUTOR, keeping=AT_ONCE):
        pool = ExecutorPool(Launch(scratch_root=scratch, cpu_cores=1, module=module), keeping)
        try:
            yield pool
        finally:
            await pool.close()

    return opened


def pids(pool):
    return [executor.pid for executor in pool._living() if executor.death is None]


async def take(pool, bundle):
    task, path = bundle
    return await pool.take_new(task, TaskFiles(path), lambda *_: None)


async def test_it_is_cold_until_the_first_executor_is_warm(open_pool, scratch, tmp_path):
    os.mkfifo(tmp_path / "warm")
    async with open_pool(COLD_EXECUTOR) as pool:
        assert not pool.is_cold, "nothing is coming that one could wait for"
        pool.prestart()
        waiting = asyncio.create_task(pool.warmed_up())
        await until(lambda: len(list(scratch.glob("executor-*"))) == 1)
        assert pool.is_cold
        assert not waiting.done()
        await asyncio.to_thread((tmp_path / "warm").write_bytes, b"")
        await waiting
        assert not pool.is_cold


async def test_an_executor_that_cannot_start_is_not_waited_for(open_pool):
    async with open_pool("no.such.module") as pool:
        pool.prestart()
        await pool.warmed_up()
        assert not pool.is_cold


async def test_one_that_dies_is_replaced_by_the_spare_beside_it(open_pool, bundle):
    async with open_pool() as pool:
        first = await take(pool, bundle)
        pool.sweep()
        await until(lambda: len(pids(pool)) == 2)
        (spare,) = set(pids(pool)) - {first.pid}
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: first.death is not None)
        pool.give_back(first)
        assert (await take(pool, bundle)).pid == spare


@pytest.mark.parametrize(
    "keeping",
    [
        Keeping(fewest=2, idle_seconds=600, settled_seconds=600),
        Keeping(fewest=2, idle_seconds=600, settled_seconds=0, may_spare=lambda: False),
    ],
)
async def test_no_spare_is_kept_too_early_or_where_memory_is_scarce(open_pool, bundle, keeping):
    async with open_pool(keeping=keeping) as pool:
        first = await take(pool, bundle)
        pool.sweep()
        assert pids(pool) == [first.pid]


async def test_a_dead_spare_is_replaced(open_pool, bundle):
    async with open_pool() as pool:
        first = await take(pool, bundle)
        pool.sweep()
        await until(lambda: len(pids(pool)) == 2)
        (spare,) = set(pids(pool)) - {first.pid}
        os.kill(spare, signal.SIGKILL)
        await until(lambda: pids(pool) == [first.pid])
        pool.sweep()
        await until(lambda: len(pids(pool)) == 2)


async def test_what_is_idle_is_stopped_with_the_spare_where_memory_is_needed(open_pool, bundle):
    async with open_pool() as pool:
        first = await take(pool, bundle)
        pool.sweep()
        await until(lambda: len(pids(pool)) == 2)
        assert pool.stop_idle()
        assert pids(pool) == [first.pid], "it is leased"
        pool.give_back(first)
        assert pool.stop_idle()
        assert pids(pool) == []
        assert not pool.stop_idle()


def task_of(bundle, name):
    task, path = bundle
    return task.model_copy(update={"task_id": name}), path


async def serve(pool, bundle, *names):
    """Serve tasks one after the other; return the ids of those that are still warm."""
    for name in names:
        executor = pool.take(name) or await take(pool, task_of(bundle, name))
        pool.give_back(executor)
    return [executor.task_id for executor in pool._serving]


@pytest.mark.parametrize(
    ("has_room", "most", "warm"),
    [
        (True, 9, ["a", "b", "c", "d"]),
        (False, 9, ["c", "d"]),
        (True, 3, ["b", "c", "d"]),
    ],
)
async def test_as_many_tasks_stay_warm_as_memory_and_the_limit_allow(open_pool, bundle, has_room, most, warm):
    keeping = Keeping(fewest=2, most=most, idle_seconds=600, settled_seconds=600, has_room=lambda _: has_room)
    async with open_pool(keeping=keeping) as pool:
        assert await serve(pool, bundle, "a", "b", "c", "d") == warm


async def test_the_task_that_was_served_least_recently_goes_first(open_pool, bundle):
    keeping = Keeping(fewest=2, idle_seconds=600, settled_seconds=600)
    async with open_pool(keeping=keeping) as pool:
        assert await serve(pool, bundle, "a", "b", "a", "c") == ["a", "c"]


async def test_room_is_asked_for_by_the_size_of_what_is_there_or_is_to_come(open_pool, bundle):
    asked = []
    keeping = Keeping(
        fewest=1, most=9, idle_seconds=600, settled_seconds=600, has_room=lambda size: asked.append(size) or True
    )
    async with open_pool(keeping=keeping) as pool:
        await serve(pool, bundle, "a", "b")
        pool._serving[0].memory_bytes = lambda: 10**9
        await serve(pool, bundle, "c")
        large, path = task_of(bundle, "d")
        pool.give_back(await take(pool, (large.model_copy(update={"needed_ram_bytes": 10**10}), path)))
    assert asked == [SPARE_RAM_BYTES, 10**9, 10**10]


async def test_where_others_need_the_memory_the_least_recent_goes_at_each_sweep(open_pool, bundle):
    room = [True]
    keeping = Keeping(fewest=2, most=9, idle_seconds=600, settled_seconds=600, has_room=lambda _: room[0])
    async with open_pool(keeping=keeping) as pool:
        await serve(pool, bundle, "a", "b", "c", "d")
        room[0] = False
        pool.sweep()
        assert [e.task_id for e in pool._serving] == ["b", "c", "d"]
        pool.sweep()
        pool.sweep()
        assert [e.task_id for e in pool._serving] == ["c", "d"]


async def test_what_is_idle_for_too_long_is_ended_and_a_spare_takes_its_place(open_pool, bundle):
    keeping = Keeping(fewest=2, idle_seconds=0, settled_seconds=600)
    async with open_pool(keeping=keeping) as pool:
        first = await take(pool, bundle)
        pool.sweep()
        assert pids(pool) == [first.pid], "it is at work"
        pool.give_back(first)
        pool.sweep()
        await until(lambda: len(pids(pool)) == 1 and pids(pool) != [first.pid])
        assert pool._spare.task_id is None
        pool.sweep()
        assert pool._spare.death is None, "a spare holds no accelerator: it may stay"


async def test_idle_executors_are_ended_without_a_connection_too(farm, start_agent, monkeypatch):
    monkeypatch.setattr(executor_pool, "_SWEEP_SECONDS", 0.01)
    async with start_agent(idle_executor_seconds=0.2, spare_executor=False) as life:
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        await peer.acknowledge(await peer.expect(Result))
        farm.refuse_status = 503
        await peer.close()
        await until(lambda: not [p for p in psutil.Process().children() if "fake_executor" in " ".join(p.cmdline())])
        assert not life.done()


async def test_a_client_takes_no_work_before_its_first_executor_is_warm(farm, start_agent, home):
    os.mkfifo(home / "warm")
    async with start_agent(executor_module=COLD_EXECUTOR):
        peer = await farm.next_client()
        await peer.welcome()
        assert (await peer.expect(Ready)).slots == 0
        await asyncio.to_thread((home / "warm").write_bytes, b"")
        while (await peer.expect(Ready)).slots == 0:
            continue
