import asyncio
import threading

import pytest

from farm_client.transfer.threads import in_thread


async def test_what_the_thread_returns_or_raises_is_the_outcome():
    assert await in_thread(lambda: threading.current_thread().name, lambda: None) == "transfer"
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, lambda: None)


async def test_a_cancelled_thread_is_stopped_and_waited_for():
    begun, stopped, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(begun.set)
        stopped.wait()
        ended.append(True)
        raise OSError("nobody wants to hear it")

    task = asyncio.create_task(in_thread(work, stopped.set))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_a_thread_that_does_not_stop_is_left_behind(monkeypatch):
    monkeypatch.setattr("farm_client.transfer.threads._STOP_SECONDS", 0.05)
    begun, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(begun.set)
        released.wait()

    task = asyncio.create_task(in_thread(work, lambda: None))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (left,) = [thread for thread in threading.enumerate() if thread.name == "transfer"]
    assert left.daemon
    released.set()
    left.join()
    await asyncio.sleep(0)  # its word to the loop finds nobody


def test_a_thread_may_outlive_the_loop(monkeypatch):
    monkeypatch.setattr("farm_client.transfer.threads._STOP_SECONDS", 0.05)
    released = threading.Event()

    async def give_up():
        task = asyncio.create_task(in_thread(released.wait, lambda: None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(give_up())
    left = [thread for thread in threading.enumerate() if thread.name == "transfer"]
    released.set()
    for thread in left:
        thread.join()
