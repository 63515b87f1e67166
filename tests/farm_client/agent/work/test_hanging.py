"""An executor that gets no further for as long as its lease is ended, and told of as what it is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farm_client.agent.errors import ExecutorDied
from farm_client.agent.work.hang_limit import HangLimit
from farm_client.agent.work.held_assignment import Held
from farm_client.agent.work.job import Job
from farm_client.executor.messages import Advance
from protocol.assignments import Assign, Kind, Progress, Result
from protocol.messages import Error, Scope
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone
from tests.protocol.samples import BY_TYPE

ASSIGN = cast("Assign", BY_TYPE["assign"])
LEASE_SECONDS = 8.0
"""Longer than a start takes on a busy machine."""


class TestOnRealProcesses:
    """A process that is stopped from outside, as one that hangs in C."""

    @pytest.mark.parametrize("is_cut_off", [False, True], ids=["connected", "cut off"])
    async def test_a_stopped_executor_is_ended_and_reported_and_the_machine_works_on(
        self, farm: Any, start_agent: Any, tmp_path: Path, is_cut_off: bool
    ) -> None:
        farm.lease_seconds = LEASE_SECONDS
        pid_file = tmp_path / "pid"
        async with start_agent():
            peer = await joined(farm)
            assign = farm.assign(farm.task(doing="hang", pid_file=str(pid_file)))
            await peer.send(assign)
            await peer.expect(Progress)
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGSTOP)
            if is_cut_off:  # then no order of the farm's ends it
                await peer.close(1012)
                await gone(pid)
                peer = await joined(farm, incarnation=2)
            error = await peer.expect(Error, timeout_seconds=60)
            await gone(pid)
            farm.lease_seconds = 60.0
            await peer.send(farm.assign(farm.task("task2")))
            await peer.expect(Result)
        assert (error.code, error.scope, error.fence) == ("hung", Scope.ELSEWHERE, assign.fence)
        assert error.message == "the executor hung and was ended: it got no further for 8 s while it was training"


class TestHangLimit:
    """How long nothing may get on."""

    async def test_what_hangs_is_cancelled_and_named(self) -> None:
        work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with pytest.raises(ExecutorDied) as died:
            async with HangLimit(0.01).over(lambda: "training"):
                await work
        assert (died.value.death.code, work.cancelled()) == ("hung", True)
        assert died.value.message.endswith("while it was training")

    async def test_whatever_gets_on_begins_the_time_anew(self) -> None:
        limit, now = HangLimit(100.0), asyncio.get_running_loop().time
        async with limit.over(lambda: ""):
            assert limit._timeout is not None
            limit._timeout.reschedule(now() + 5)
            before = now()
            limit.got_on()
            assert before + 100 <= (limit._timeout.when() or 0) <= now() + 100
            limit.lift()
            assert limit._timeout.when() is None
        limit.got_on()  # after its block nothing is limited
        limit.lift()

    async def test_without_a_limit_nothing_hangs(self) -> None:
        limit = HangLimit(None)
        async with limit.over(lambda: ""):
            limit.got_on()
            assert limit._timeout is not None
            assert limit._timeout.when() is None

    async def test_a_time_out_of_somebody_else_s_is_none_of_its_own(self) -> None:
        with pytest.raises(TimeoutError):
            async with HangLimit(100.0).over(lambda: ""):
                raise TimeoutError

    async def test_after_it_struck_it_can_be_used_again(self) -> None:
        limit = HangLimit(0.01)
        for _ in range(2):
            with pytest.raises(ExecutorDied):
                async with limit.over(lambda: ""):
                    await asyncio.get_running_loop().create_future()


class TestWhatGetsOn:
    """The farm's own measure: more samples."""

    def job(self, kind: Kind = Kind.TRAIN) -> Job:
        tools: Any = SimpleNamespace(fetcher=None, making=None)
        return Job(Held(ASSIGN.model_copy(update={"kind": kind})), tools)

    def test_more_samples_do_and_the_same_ones_do_not(self) -> None:
        job, counted = self.job(), []
        job._hang = cast("HangLimit", SimpleNamespace(got_on=lambda: counted.append(job.held.samples_done)))
        for samples in (8, 8, 16, 16):
            job._on_advance(Advance(assignment_id="a", samples_done=samples))
        assert counted == [0, 8]

    def test_what_follows_an_epoch_has_no_samples_and_so_only_the_farm_s_limit(self) -> None:
        seconds = {kind: self.job(kind)._hang._seconds for kind in Kind}
        assert seconds == {
            Kind.TRAIN: ASSIGN.lease_seconds,
            Kind.EVALUATE: ASSIGN.lease_seconds,
            Kind.EPOCH_END: None,
            Kind.MAP: ASSIGN.lease_seconds,
        }
