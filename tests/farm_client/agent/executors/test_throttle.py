"""Executors kept to a share of the time and to some cores: by fakes on a clock, and by real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from farm_client.agent.executors.throttle import Throttle
from farm_client.sandbox.halting import go_on, halt, keep_to_cores
from tests.farm_client.agent.waiting import until

BUSY = "import threading\nt=threading.Thread(target=lambda: [0 for _ in iter(int, 1)])\nt.start()\nprint(1, flush=True)"
PARENT = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {BUSY!r}]); p.wait()"


@dataclass
class StandIn:
    """A process; ``log`` is what was done to it."""

    log: list[object] = field(default_factory=list)

    def halt(self) -> None:
        self.log.append("halt")

    def go_on(self) -> None:
        self.log.append("go on")

    def keep_to_cores(self, cores: frozenset[int]) -> None:
        self.log.append(cores)


class Real(StandIn):
    """A real one, without a supervisor."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid

    def halt(self) -> None:
        halt(self.pid, supervised=False)

    def go_on(self) -> None:
        go_on(self.pid, supervised=False)

    def keep_to_cores(self, cores: frozenset[int]) -> None:
        keep_to_cores(self.pid, cores)


@pytest.fixture
def busy() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def family() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    parent = psutil.Process(process.pid)
    children = parent.children()
    yield parent
    for one in (parent, *children):
        one.kill()
    process.wait()
    process.stdout.close()


def turn(throttle: Throttle) -> float | None:
    return throttle._turn()


def test_it_halts_for_the_rest_of_each_turn_and_only_then() -> None:
    process, now = StandIn(), [1000.0]
    throttle = Throttle(lambda: [process], lambda: now[0])
    assert turn(throttle) is None  # nothing is limited: nothing is due
    throttle.limit(0.4, None)
    assert turn(throttle) == pytest.approx(0.2)
    assert process.log == []
    now[0] += 0.2
    assert turn(throttle) == pytest.approx(0.3)
    now[0] += 0.3
    assert turn(throttle) == pytest.approx(0.2)
    assert process.log == ["halt", "go on"]
    now[0] += 0.25
    turn(throttle)
    throttle.limit(1.0, None)
    assert turn(throttle) is None
    assert process.log == ["halt", "go on", "halt", "go on"]
    assert throttle.duty == 1.0


def test_threads_are_brought_back_to_their_cores_and_let_out_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    process, now = StandIn(), [1000.0]
    throttle = Throttle(lambda: [process], lambda: now[0])
    throttle.limit(1.0, 2)
    assert turn(throttle) == 1.0
    turn(throttle)
    now[0] += 1.0
    turn(throttle)
    assert process.log == [frozenset({2, 3})] * 2
    throttle.limit(1.0, 8)  # more than there are
    assert turn(throttle) is None
    assert process.log[2:] == [frozenset({0, 1, 2, 3})]
    throttle.limit(1.0, None)
    turn(throttle)
    assert len(process.log) == 3


async def test_what_is_halted_goes_on_when_the_throttle_ends() -> None:
    process = StandIn()
    throttle = Throttle(lambda: [process])
    throttle.limit(0.0, None)
    running = asyncio.create_task(throttle.run())
    await until(lambda: "halt" in process.log)
    running.cancel()
    await asyncio.wait([running])
    assert process.log[-1] == "go on"


async def test_a_change_holds_at_once() -> None:
    process = StandIn()
    throttle = Throttle(lambda: [process])
    running = asyncio.create_task(throttle.run())
    await asyncio.sleep(0)
    throttle.limit(0.0, None)  # it waited for a change, without an end
    await until(lambda: "halt" in process.log)
    running.cancel()
    await asyncio.wait([running])


async def test_a_busy_process_gets_its_share_and_no_more(busy: psutil.Process) -> None:
    """Measured over four seconds: a loaded machine only gives it less."""
    throttle = Throttle(lambda: [Real(busy.pid)])
    throttle.limit(0.3, None)
    running = asyncio.create_task(throttle.run())
    before, began = sum(busy.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(4.0)  # what is measured, not waited for
    share = (sum(busy.cpu_times()[:2]) - before) / (time.monotonic() - began)
    running.cancel()
    await asyncio.wait([running])
    assert 0.0 < share < 0.4
    await until(lambda: busy.status() != psutil.STATUS_STOPPED)


async def test_what_only_supervises_goes_on(family: psutil.Process) -> None:
    (child,) = family.children()
    halt(family.pid, supervised=True)
    await until(lambda: child.status() == psutil.STATUS_STOPPED)
    assert family.status() != psutil.STATUS_STOPPED
    halt(family.pid, supervised=False)
    await until(lambda: family.status() == psutil.STATUS_STOPPED)
    go_on(family.pid, supervised=False)
    await until(lambda: psutil.STATUS_STOPPED not in (family.status(), child.status()))


def test_all_threads_of_all_processes_keep_to_their_cores(family: psutil.Process) -> None:
    (child,) = family.children()
    usable = frozenset(os.sched_getaffinity(0))
    one = frozenset({max(usable)})
    keep_to_cores(family.pid, one)
    threads = [thread.id for process in (family, child) for thread in process.threads()]
    assert len(threads) >= 3
    assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {one}
    keep_to_cores(family.pid, usable)
    assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {usable}


def test_a_process_that_is_gone_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    keep_to_cores(process.pid, frozenset({0}))
    halt(process.pid, supervised=False)
    monkeypatch.delattr(os, "sched_setaffinity")
    keep_to_cores(os.getpid(), frozenset())
