from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pytest

from farm_client.sdk.blocking_transfers import run_interruptible

T = TypeVar("T")


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def waits(kept: list[str]) -> None:
    asyncio.get_running_loop().call_soon(press)
    try:
        await asyncio.sleep(60)
    finally:
        kept.append("what it had")


async def loses_a_cancel() -> None:
    asyncio.get_running_loop().call_soon(press)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)


async def ends_all_the_same() -> str:
    press()
    await asyncio.sleep(0)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0.01)
    return "done"


async def fails_of_it() -> None:
    asyncio.get_running_loop().call_soon(press)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ValueError("broken off") from None


def test_an_interrupted_coroutine_can_keep_what_it_has() -> None:
    kept: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(waits(kept))
    assert kept == ["what it had"]


@pytest.mark.parametrize("work", [loses_a_cancel, ends_all_the_same, fails_of_it])
def test_an_interrupt_is_not_forgotten(work) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())


def in_a_cell(call: Callable[[], T]) -> T:
    """Call it as a notebook's cell is run: in a loop that runs, and leaves Ctrl-C as it is."""

    async def cell() -> T:
        return call()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def test_in_a_notebook_it_runs_beside_the_loop_that_is_there() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def breaks() -> None:
        raise ValueError("no")

    assert in_a_cell(lambda: run_interruptible(answer())) == 42
    with pytest.raises(ValueError, match="no"):
        in_a_cell(lambda: run_interruptible(breaks()))


@pytest.mark.parametrize("work", [loses_a_cancel, fails_of_it])
def test_in_a_notebook_an_interrupt_cancels_too(work) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_a_cell(lambda: run_interruptible(work()))


def test_in_a_notebook_no_wait_is_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C between the last look at signals and a wait without an end is seen when that ends, so there is none."""
    waited: list[float | None] = []

    class Watched(Future[int]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            waited.append(timeout)
            return super().exception(timeout)

    async def answer() -> int:
        await asyncio.sleep(0.01)
        return 42

    monkeypatch.setattr("farm_client.sdk.blocking_transfers.Future", Watched)
    assert in_a_cell(lambda: run_interruptible(answer())) == 42
    assert waited
    assert None not in waited


def test_in_a_notebook_an_interrupted_coroutine_can_keep_what_it_has() -> None:
    kept: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        in_a_cell(lambda: run_interruptible(waits(kept)))
    assert kept == ["what it had"]


def test_afterwards_an_interrupt_is_what_it_was() -> None:
    async def answer() -> int:
        return 42

    before = signal.getsignal(signal.SIGINT)
    assert run_interruptible(answer()) == 42
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press()


def test_what_fails_by_itself_fails_as_it_does() -> None:
    async def breaks() -> None:
        raise ValueError("by itself")

    with pytest.raises(ValueError, match="by itself"):
        run_interruptible(breaks())
