"""When executors are started, kept beside those at work, and waited for."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest

from farm_client.agent.executor_pool import ExecutorPool, Keeping
from farm_client.executor.process import Launch
from protocol.messages import Ready
from tests.farm_client.agent.conftest import FAKE_EXECUTOR
from tests.farm_client.agent.scripted_farm import ScriptedFarm
from tests.farm_client.agent.waiting import until

COLD_EXECUTOR = "tests.farm_client.agent.cold_executor"
AT_ONCE = Keeping(limit=2, idle_seconds=600, settled_seconds=0)


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
    return await pool.take_new(task, path, 1024, lambda *_: None)


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
        Keeping(limit=2, idle_seconds=600, settled_seconds=600),
        Keeping(limit=2, idle_seconds=600, settled_seconds=0, may_spare=lambda: False),
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


async def test_a_client_takes_no_work_before_its_first_executor_is_warm(farm, start_agent, home):
    os.mkfifo(home / "warm")
    async with start_agent(executor_module=COLD_EXECUTOR):
        peer = await farm.next_client()
        await peer.welcome()
        assert (await peer.expect(Ready)).slots == 0
        await asyncio.to_thread((home / "warm").write_bytes, b"")
        while (await peer.expect(Ready)).slots == 0:
            continue
