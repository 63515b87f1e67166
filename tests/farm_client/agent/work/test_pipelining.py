"""With pipelining a slot is free once its update is in the outbox; the upload goes on beside the next assignment."""

import os
import signal
from functools import partial

import pytest

from farm_client.agent.reporting.status import read_status
from protocol.assignments import Accept, Cancel, Kind, Phase, Progress, Reject, Result
from protocol.messages import Bye, Drain, Error, Heartbeat, Pause, Ready
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

LARGE = b"w" * 5000
"""An update that starts from these weights is uploaded."""


def pipelined(farm, **config):
    return farm.task(**config).model_copy(update={"pipeline": True})


async def work_through(peer, farm, task, times):
    """Have an agent with one slot do so many assignments whose updates are uploaded; return them."""
    assigns = [farm.assign(task, weights=LARGE + bytes([number])) for number in range(times)]
    for assign in assigns:
        await peer.send(assign)
        await until(partial(is_free_again, peer, assign))
    return assigns


def is_free_again(peer, assign):
    """Whether the agent accepted it and said later that it has a free slot."""
    accepts = [n for n, m in enumerate(peer.log) if isinstance(m, Accept) and m.assignment_id == assign.assignment_id]
    return bool(accepts) and any(isinstance(m, Ready) and m.slots for m in peer.log[accepts[0] :])


def waiting(home):
    return list((home / "outbox").glob("*/*.result"))


async def test_the_next_assignment_begins_while_the_update_is_uploaded(farm, start_agent):
    farm.upload_gate.clear()
    async with start_agent():
        peer = await joined(farm)
        task = pipelined(farm)
        (first,) = await work_through(peer, farm, task, 1)
        second = farm.assign(task, weights=b"small")
        await peer.send(second)
        assert (await peer.expect(Result)).assignment_id == second.assignment_id
        farm.upload_gate.set()
        result = await peer.expect(Result)
        assert result.assignment_id == first.assignment_id
        assert farm.blobs[result.update.digest] == LARGE + b"\0-shard"


async def test_the_next_assignment_is_done_by_the_same_executor_while_the_update_is_written(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        task = pipelined(farm, late=True)
        first, second = farm.assign(task, weights=b"one"), farm.assign(task, weights=b"two")
        await peer.send(first)
        await until(partial(is_free_again, peer, first))  # although its result has not been written
        assert not waiting(home)
        await peer.send(second)
        result = await peer.expect(Result)
        assert result.assignment_id == first.assignment_id
        assert result.update.carried == b"one" + b"-shard"


async def test_whoever_wants_an_update_no_more_costs_the_next_one_nothing(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = pipelined(farm, late=True)
        dropped, second, third = (farm.assign(task, weights=weights) for weights in (b"one", b"two", b"three"))
        await peer.send(dropped)
        await until(partial(is_free_again, peer, dropped))
        await peer.send(Cancel(assignment_id=dropped.assignment_id, fence=dropped.fence))
        for assign in (second, third):
            await peer.send(assign)
            await until(partial(is_free_again, peer, assign))
        assert (await peer.expect(Result)).assignment_id == second.assignment_id


async def test_a_small_result_comes_right_after_the_free_slot_in_one_frame(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(pipelined(farm)))
        await peer.expect(Result)
    (frame,) = [frame for frame in peer.frames if any(isinstance(m, Result) for m in frame)]
    assert [m.type for m in frame][-2:] == ["ready", "result"]
    assert frame[-2].slots == 1


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("pipeline", [False, True])
async def test_only_a_pipelined_tasks_own_work_frees_its_slot_before_the_result(farm, start_agent, kind, pipeline):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task().model_copy(update={"pipeline": pipeline})
        await peer.send(farm.assign(task, kind=kind))
        await peer.expect(Result)
        said = [m.type for m in peer.log if isinstance(m, Accept | Ready | Result)]
    after_accept = said[said.index("accept") :]
    freed = pipeline and kind in {Kind.TRAIN, Kind.MAP}
    assert after_accept[: after_accept.index("result") + 1] == ["accept", *(["ready"] if freed else []), "result"]


async def test_uploads_that_pile_up_keep_the_slot_and_say_why(farm, start_agent, home):
    farm.upload_gate.clear()
    async with start_agent():
        peer = await joined(farm)
        task = pipelined(farm)
        first_two = await work_through(peer, farm, task, 2)
        third = farm.assign(task, weights=LARGE)
        await peer.send(third)
        await until(lambda: len(waiting(home)) == 3)
        waits = 0
        while waits < 2:
            doing = {x.assignment_id: x for x in (await peer.expect(Heartbeat)).assignments}
            waits = doing[third.assignment_id].waits if third.assignment_id in doing else 0
        # the number grows: who waits as told is not stuck
        assert doing[third.assignment_id].phase is Phase.UPLOADING
        assert set(doing) == {a.assignment_id for a in (*first_two, third)}
        assert not is_free_again(peer, third)
        await until(lambda: "2 results on the way already" in read_status(home / "status.json").doing)
        farm.upload_gate.set()
        await until(lambda: is_free_again(peer, third))
        results = {(await peer.expect(Result)).assignment_id for _ in range(3)}
        assert results == {a.assignment_id for a in (*first_two, third)}


async def test_heartbeats_name_what_is_uploaded_and_what_computes(farm, start_agent, tmp_path):
    farm.upload_gate.clear()
    async with start_agent():
        peer = await joined(farm)
        (first,) = await work_through(peer, farm, pipelined(farm), 1)
        second = farm.assign(farm.task("task2", doing="hang", pid_file=str(tmp_path / "pid")))
        await peer.send(second)
        phases = {}
        while phases != {first.assignment_id: Phase.UPLOADING, second.assignment_id: Phase.COMPUTING}:
            phases = {x.assignment_id: x.phase for x in (await peer.expect(Heartbeat)).assignments}


@pytest.mark.parametrize("order", [Cancel, Pause])
async def test_an_upload_that_nobody_wants_any_more_stops(farm, start_agent, home, order):
    farm.upload_gate.clear()
    async with start_agent():
        peer = await joined(farm)
        (assign,) = await work_through(peer, farm, pipelined(farm), 1)
        fields = (
            {"assignment_id": assign.assignment_id, "fence": assign.fence} if order is Cancel else {"task_id": "task1"}
        )
        await peer.send(order(**fields))
        await until(lambda: not waiting(home))
        farm.upload_gate.set()
        other = farm.assign(farm.task("task2"))
        await peer.send(other)
        await peer.expect(Result)
    assert [m.assignment_id for m in peer.log if isinstance(m, Result)] == [other.assignment_id]


async def test_a_leaving_client_finishes_its_uploads(farm, start_agent):
    farm.upload_gate.clear()
    async with start_agent(drain_seconds=30.0) as life:
        peer = await joined(farm)
        (assign,) = await work_through(peer, farm, pipelined(farm), 1)
        os.kill(os.getpid(), signal.SIGINT)
        await peer.expect(Drain)
        farm.upload_gate.set()
        result = await peer.expect(Result)
        assert result.assignment_id == assign.assignment_id
        await peer.acknowledge(result)
        await peer.expect(Bye)
        await life
    assert not [m for m in peer.log if isinstance(m, Reject)]


async def test_what_could_not_be_uploaded_in_time_waits_for_the_next_join(farm, start_agent, home):
    farm.upload_gate.clear()
    async with start_agent() as life:
        peer = await joined(farm)
        (assign,) = await work_through(peer, farm, pipelined(farm), 1)
        os.kill(os.getpid(), signal.SIGINT)
        await peer.expect(Bye)
        await life
    assert not [m for m in peer.log if isinstance(m, Reject)]
    farm.upload_gate.set()
    async with start_agent():
        peer = await joined(farm)
        assert [x.assignment_id for x in peer.log[0].held] == [assign.assignment_id]
        assert (await peer.expect(Result)).assignment_id == assign.assignment_id


async def test_an_upload_outlives_its_connection_and_the_slot_stays_free(farm, start_agent):
    farm.upload_gate.clear()
    async with start_agent():
        peer = await joined(farm)
        (assign,) = await work_through(peer, farm, pipelined(farm), 1)
        await peer.close(1012)
        peer = await farm.next_client()
        await peer.welcome(incarnation=2)
        assert [(x.assignment_id, x.finished) for x in peer.log[0].held] == [(assign.assignment_id, True)]
        assert (await peer.expect(Ready)).slots == 1
        farm.upload_gate.set()
        assert (await peer.expect(Result)).assignment_id == assign.assignment_id


async def test_what_the_code_printed_comes_before_the_result_that_is_sent_beside(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(pipelined(farm), weights=LARGE))
        await peer.expect(Result)
    sent = [m for m in peer.log if isinstance(m, Progress | Result)]
    assert [line.text for message in sent[:-1] for line in message.logs] == ["loading code", "round 0: train"]


async def test_what_was_computed_when_its_executor_ended_says_so(farm, start_agent):
    """The next assignment ended it: nobody should look for the reason in this one."""
    async with start_agent():
        peer = await joined(farm)
        task = pipelined(farm, late=True, doing="die_later", signal="SIGSEGV")
        first, second = (farm.assign(task, weights=b"one", round_number=number, kind=Kind.MAP) for number in (0, 1))
        await peer.send(first)
        await until(partial(is_free_again, peer, first))
        await peer.send(second)
        errors = [await peer.expect(Error) for _ in range(2)]
    assert {(error.assignment_id, error.code) for error in errors} == {
        (first.assignment_id, "died_later"),
        (second.assignment_id, "killed"),
    }


async def test_a_part_of_a_map_is_not_begun_again_where_its_executor_ended(farm, start_agent, tmp_path):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task(doing="die_once", signal="SIGSEGV", marker=str(tmp_path / "died"))
        await peer.send(farm.assign(task, kind=Kind.MAP))
        assert (await peer.expect(Error)).code == "killed"
        await peer.send(again := farm.assign(task, kind=Kind.MAP))
        assert (await peer.expect(Result)).assignment_id == again.assignment_id
