"""A pipelined task's executor trains on while its last update is written: who waits for whom, and the bits."""

from __future__ import annotations

import os
import textwrap
import threading
from pathlib import Path

import torch

from farm_client.executor.layout import apart
from farm_client.executor.messages import Advance, Done, Failed, StepsDone
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.update_thread import UpdateThread
from protocol.assignments import Kind
from protocol.compression import CodecName, CodecSpec
from tests.farm_client.executor.agent_side import load_order, run_order, started
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of, write_data

INT8 = CodecSpec(name=CodecName.INT8, block=16, zstd=False)

GATED_WRITER = """
    # An executor whose first update waits in its writer until the gate is opened.
    import os, sys
    from pathlib import Path
    from farm_client.executor import updates
    from farm_client.executor.__main__ import main
    from farm_client.executor.runner import TaskRunner

    of_farm = updates.UpdateWriter.write

    def write(self, assignment_id, *rest):
        if assignment_id == "a1":
            gate = Path(os.environ["GATE"]).read_bytes()  # a FIFO: until the test writes to it
            if gate == b"full":
                raise OSError(28, "No space left on device")
        return of_farm(self, assignment_id, *rest)

    def run_ahead(self, order, progress):
        outcome = run_ahead_of_farm(self, order, progress)
        if order.assignment_id == "a2":
            Path(os.environ["STEPS"]).write_bytes(b"a2")  # a FIFO: the test reads that the steps are done
        return outcome

    updates.UpdateWriter.write = write
    run_ahead_of_farm, TaskRunner.run_ahead = TaskRunner.run_ahead, run_ahead
    sys.exit(main())
"""


def heard(agent):
    while isinstance(report := agent.hear(), Advance):
        pass
    return report


def two_assignments(tmp_path: Path, said_at_the_gate: bytes):
    """Give a pipelined executor two orders, the first one's update held up; return its reports from there on."""
    (tmp_path / "gated_executor.py").write_text(textwrap.dedent(GATED_WRITER))
    for fifo in ("gate", "steps"):
        os.mkfifo(tmp_path / fifo)
    order = run_order(*write_data(tmp_path), assignment_id="a1")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    fifos = {"GATE": str(tmp_path / "gate"), "STEPS": str(tmp_path / "steps")}
    with started("gated_executor", **fifos, PYTHONPATH=paths) as agent:
        agent.hear()
        agent.send(load_order(tmp_path, LINEAR, pipeline=True))
        agent.hear()
        agent.send(order)
        reports = [heard(agent)]
        agent.send(order.model_copy(update={"assignment_id": "a2"}))
        assert (tmp_path / "steps").read_bytes() == b"a2", "its steps ran while the first update waited"
        (tmp_path / "gate").write_bytes(said_at_the_gate)
        while len(reports) < 4:
            reports.append(heard(agent))
    return reports


def test_the_next_assignment_is_trained_while_the_last_update_is_written(tmp_path):
    first, *others = two_assignments(tmp_path, b"open")
    assert first == StepsDone(assignment_id="a1")
    assert [type(report) for report in others if report.assignment_id == "a1"] == [Done]
    assert [type(report) for report in others if report.assignment_id == "a2"] == [StepsDone, Done]
    done = {report.assignment_id: report for report in others if isinstance(report, Done)}
    assert update_of(done["a1"]).keys() == {"weight", "bias"}
    assert done["a1"].update_digest == done["a2"].update_digest, "the same order gives the same bits, ahead or not"


def test_a_write_that_fails_is_its_own_assignments_failure(tmp_path):
    _, *others = two_assignments(tmp_path, b"full")
    (failed,) = [report for report in others if report.assignment_id == "a1"]
    assert isinstance(failed, Failed)
    assert failed.code == "disk_full"
    assert [type(report) for report in others if report.assignment_id == "a2"] == [StepsDone, Done]


def test_what_is_trained_meanwhile_leaves_no_trace_in_the_update(tmp_path):
    plain, ahead = Bench(tmp_path / "plain", LINEAR), Bench(tmp_path / "ahead", LINEAR)
    first = ahead.train_ahead()
    second = ahead.train_ahead(shards=slice(1))
    assert first().update_digest == plain.train().update_digest
    assert second().update_digest == plain.train(shards=slice(1)).update_digest


def test_what_an_update_lost_comes_with_the_next_one_in_the_order_of_writing(tmp_path):
    plain, ahead = (Bench(tmp_path / name, LINEAR, update_codec=INT8) for name in ("plain", "ahead"))
    first, second = ahead.train_ahead(), ahead.train_ahead()
    for write in (first, second):
        theirs, ours = plain.train(), write()
        assert ours.update_digest == theirs.update_digest
        plain.runner.confirm()
        ahead.runner.confirm()


def test_an_evaluation_is_answered_at_once(tmp_path):
    bench = Bench(tmp_path, LINEAR)
    assert isinstance(bench.runner.run_ahead(bench.run_order(Kind.EVALUATE), ProgressReporter(print)), Done)


def test_no_more_than_one_update_waits_to_be_written():
    behind, gate, begun = UpdateThread(), threading.Event(), []
    behind.start(gate.wait)
    following = threading.Thread(target=lambda: behind.start(lambda: begun.append("second")))
    following.start()
    assert begun == []
    gate.set()
    following.join()
    behind.wait()
    assert begun == ["second"]


def test_copies_that_are_apart_stay_as_they_are():
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}
    copies = apart(tensors)
    tensors["a"].zero_()
    assert copies["a"].equal(torch.arange(6.0).view(2, 3).t())
    assert copies["a"].is_contiguous()
    assert copies["b"].equal(torch.tensor(3))
