"""An agent does assignments for a farm that a test plays, with executors that speak the real frames."""

import asyncio
import json

import psutil
import pytest

from farm_client.agent.connection.link import Link
from farm_client.agent.work.preflight import lacking
from farm_client.executor import process
from protocol.assignments import Accept, Cancel, Kind, Progress, Reject, Result
from protocol.messages import Error, Heartbeat, Pause, Ready, Scope
from protocol.tasks import BlobRef
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone, until


async def test_a_result_carries_the_update_and_the_samples(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task())
        await peer.send(assign)
        assert (await peer.expect(Accept)).fence == assign.fence
        result = await peer.expect(Result)
    assert result.update.inline == b"weights-shard"
    assert (result.samples, result.metrics, result.fence) == (6, {"loss": 0.5}, assign.fence)


async def test_what_the_code_printed_comes_before_its_result(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), round_number=7))
        await peer.expect(Result)
    sent = [m for m in peer.log if isinstance(m, Progress | Result)]
    lines = [line.text for message in sent[:-1] for line in message.logs]
    assert lines == ["loading code", "round 7: train"]
    assert [point.name for message in sent[:-1] for point in message.metrics] == ["fake"]
    assert isinstance(sent[-1], Result)


async def test_an_executor_stays_warm_and_keeps_its_weights(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task()
        for number in range(5):
            await peer.send(farm.assign(task, round_number=number))
            result = await peer.expect(Result)
            assert result.update.inline == b"weights-shard"
            await peer.acknowledge(result)
        printed = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs]
    assert printed.count("loading code") == 1
    assert sum(method == "GET" for method, _ in farm.requests) == 2  # the code and the shard, once each


async def test_large_weights_and_updates_travel_by_http(farm, start_agent):
    weights = b"w" * 100_000
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=weights, inline=False))
        result = await peer.expect(Result)
        assert result.update.inline is None
        assert farm.blobs[result.update.digest] == weights + b"-shard"
        await peer.acknowledge(result)


async def test_an_inner_state_comes_inside_the_message_or_by_http(farm, start_agent):
    """The executor of this test puts what it was given into its update."""
    small = BlobRef.carrying(b"-small")
    async with start_agent():
        peer = await joined(farm)
        for state, given in ((None, b""), (small, b"-small"), (farm.store(b"-large"), b"-large"), (small, b"-small")):
            await peer.send(farm.assign(farm.task()).model_copy(update={"inner_state": state}))
            result = await peer.expect(Result)
            assert result.update.inline == b"weights" + given + b"-shard"
            await peer.acknowledge(result)


async def test_a_slow_connection_gets_an_upload_of_what_a_quick_one_carries(farm, start_agent, monkeypatch):
    monkeypatch.setattr(Link, "room_bytes", 4)
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        result = await peer.expect(Result)
    assert result.update.inline is None
    assert farm.blobs[result.update.digest] == b"weights-shard"


async def test_an_upload_is_tried_again(farm, start_agent):
    farm.fail_uploads = 2
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=b"w" * 5000))
        result = await peer.expect(Result)
    assert farm.blobs[result.update.digest] == b"w" * 5000 + b"-shard"


async def test_an_evaluation_has_no_update(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), kind=Kind.EVALUATE))
        assert (await peer.expect(Result)).update is None


async def test_heartbeats_carry_load_and_progress(farm, start_agent, tmp_path):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid")))
        await peer.send(assign)
        await peer.expect(Progress)
        while not (beat := await peer.expect(Heartbeat)).assignments or beat.assignments[0].samples_done == 0:
            pass
    assert beat.load.ram_free_bytes > 0
    assert beat.assignments[0].fence == assign.fence


async def test_a_cancel_kills_the_step_within_two_seconds_and_frees_the_slot(farm, start_agent, tmp_path):
    pid_file = tmp_path / "pid"
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="hang", pid_file=str(pid_file)))
        await peer.send(assign)
        await peer.expect(Progress)
        pid = int(pid_file.read_text())
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        assert (await peer.expect(Ready, timeout_seconds=2)).slots == 1
        await gone(pid)
        await peer.send(farm.assign(farm.task("task2")))
        await peer.expect(Result)


@pytest.mark.parametrize("end", ["cancel", "pause"])
async def test_what_was_printed_before_an_assignment_was_stopped_is_reported(farm, start_agent, tmp_path, end):
    pid_file = tmp_path / "pid"
    async with start_agent():
        peer = await joined(farm, heartbeat_seconds=60.0, progress_seconds=60.0)
        assign = farm.assign(farm.task(doing="hang", pid_file=str(pid_file)))
        await peer.send(assign)
        await until(pid_file.exists)
        cancel = Cancel(assignment_id=assign.assignment_id, fence=assign.fence)
        await peer.send(cancel if end == "cancel" else Pause(task_id="task1"))
        last = await peer.expect(Progress)
    assert "round 0: hang" in [line.text for line in last.logs]
    assert last.progress.assignment_id == assign.assignment_id


async def test_a_pause_ends_the_tasks_executor(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task()
        await peer.send(farm.assign(task))
        await peer.acknowledge(await peer.expect(Result))
        executors = set(executor_pids())
        await peer.send(Pause(task_id="task1"))
        await peer.expect(Ready, timeout_seconds=2)
        await asyncio.gather(*(gone(pid) for pid in executors))
        await peer.send(farm.assign(task))  # a task that goes on is simply assigned again
        await peer.expect(Result)


@pytest.mark.parametrize(
    ("config", "code", "scope", "words"),
    [
        ({"doing": "fail"}, "task_code", Scope.NOBODY, "boom"),
        ({"fail_load": True}, "task_code", Scope.NOBODY, "build_model"),
        ({"doing": "die", "signal": "SIGSEGV"}, "killed", Scope.ELSEWHERE, "SIGSEGV while it was training"),
        ({"doing": "die", "signal": "SIGKILL"}, "killed", Scope.ELSEWHERE, "SIGKILL while it was training"),
        ({"doing": "exit", "code": 3}, "exited", Scope.ELSEWHERE, "code 3 while it was training"),
        ({"doing": "lie", "samples_done": -1}, "bad_report", Scope.ELSEWHERE, "cannot be read"),
        ({"doing": "lie", "samples_done": 2**62}, "bad_report", Scope.ELSEWHERE, "cannot be read"),
        ({"doing": "close_descriptors"}, "bad_report", Scope.ELSEWHERE, "closed its connection"),
        ({"doing": "out_of_memory"}, "out_of_memory", Scope.ELSEWHERE, "no memory"),
        ({"doing": "garbage"}, "bad_report", Scope.ELSEWHERE, "cannot be read"),
        ({"doing": "bad_metrics"}, "bad_report", Scope.NOBODY, "contract"),
        ({"doing": "steal", "target": "/etc/hostname"}, "farm_error", Scope.ELSEWHERE, "scratch"),
    ],
)
async def test_a_failure_says_why_and_the_agent_works_on(farm, start_agent, monkeypatch, config, code, scope, words):
    if config.get("doing") == "close_descriptors":
        monkeypatch.setattr(process, "_CLOSING_SECONDS", 0.1)
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(**config)))
        error = await peer.expect(Error)
        assert (error.code, error.scope) == (code, scope)
        assert words in error.message
        await peer.send(farm.assign(farm.task("task2")))
        assert (await peer.expect(Result)).update.inline == b"weights-shard"


async def test_an_executor_that_ran_out_of_memory_is_ended_and_the_idle_ones_with_it(farm, start_agent):
    async with start_agent(idle_executor_seconds=600):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task("idle")))
        await peer.acknowledge(await peer.expect(Result))
        await peer.send(farm.assign(farm.task(doing="out_of_memory")))
        assert (await peer.expect(Error)).code == "out_of_memory"
        notes = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs if line.stream == "agent"]
        assert notes == ["memory ran out, idle executors were stopped; the assignment begins again"]
        await peer.send(farm.assign(farm.task("idle")))
        await peer.expect(Result)
        printed = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs]
    assert printed.count("round 0: out_of_memory") == 2, "once more with the idle one's memory, then it is told"
    assert printed.count("loading code") == 4


async def test_a_dead_executors_last_lines_reach_the_researcher(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="die", signal="SIGABRT")))
        error = await peer.expect(Error)
    assert error.traceback.endswith("about to die")


async def test_a_flood_of_output_is_bounded_and_counted(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="flood")))
        await peer.expect(Result)
    notes = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs if line.stream == "agent"]
    assert any("dropped" in note for note in notes)


async def test_an_executor_inherits_no_secrets(farm, start_agent, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="environment")))
        await peer.expect(Result)
    printed = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs]
    names = next(text for text in printed if text.startswith("["))
    assert "AWS_SECRET_ACCESS_KEY" not in names
    assert "'OMP_NUM_THREADS'" in names


async def test_too_little_memory_is_refused_with_a_reason(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(needed_ram_bytes=2**50)))
        reject = await peer.expect(Reject)
    assert reject.code == "does_not_fit"
    assert "TiB" in reject.message


async def test_a_module_that_a_task_needs_is_looked_for_before_anything_is_fetched(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        lacks = farm.task().model_copy(update={"modules": ("torch", "no_such_module_here")})
        await peer.send(farm.assign(lacks, inline=False))
        problem = await peer.expect(Error)
        assert (problem.code, problem.scope) == ("missing_module", Scope.ELSEWHERE)
        assert problem.message == "No module named 'no_such_module_here'"
        has = farm.task().model_copy(update={"modules": ("torch", "json")})
        await peer.send(farm.assign(has))
        await peer.expect(Result)


@pytest.mark.parametrize(
    ("modules", "lacks"),
    [((), None), (("json", "__main__"), None), (("json", "no_such_module"), "no_such_module"), (("../x",), "../x")],
)
def test_modules_are_looked_up_by_name_alone(modules, lacks):
    """A name with a path in it would tell a farm which files there are; a lookup imports nothing."""
    assert lacking(modules) == lacks


async def test_more_than_the_slots_is_busy(farm, start_agent, tmp_path):
    async with start_agent():
        peer = await joined(farm)
        task = farm.task(doing="hang", pid_file=str(tmp_path / "pid"))
        await peer.send(farm.assign(task))
        await peer.send(farm.assign(task))
        assert (await peer.expect(Reject)).code == "busy"


async def test_a_missing_blob_is_handed_back(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task())
        del farm.blobs[assign.slices[0].shard.blob.digest]
        await peer.send(assign)
        assert (await peer.expect(Reject)).code == "blob_unavailable"


async def test_two_slots_work_side_by_side(farm, start_agent, tmp_path):
    async with start_agent(slots=2):
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await peer.expect(Accept)
        await peer.send(farm.assign(farm.task("task2")))
        assert (await peer.expect(Result)).update.inline == b"weights-shard"


async def test_the_status_file_says_what_it_does(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        await peer.acknowledge(await peer.expect(Result))
        peer.unread.clear()
        for _ in range(3):
            await peer.expect(Heartbeat)
        status = json.loads((home / "status.json").read_text())
    assert status["delivered"] == 1
    assert status["name"] == "tester"


def executor_pids():
    return [p.pid for p in psutil.Process().children() if "fake_executor" in " ".join(p.cmdline())]
