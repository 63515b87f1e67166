"""Numbers at the edges, within what the protocol lets in: nothing that is computed from them is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.commands import ReportDefect
from coordinator.events import AssignmentAccepted, AssignmentFailed, AssignmentRejected, ClientBeat, ClientReady
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import AssignmentRecord
from coordinator.rounds import mean_metrics
from protocol.assignments import AssignmentProgress, Kind, Phase, RejectCode
from protocol.messages import Scope
from protocol.recipe import Mode
from protocol.resources import Load
from protocol.rest import TaskView
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

DELIVERED = AssignmentRecord(
    assignment_id="a",
    task_id="t",
    round=0,
    attempt=1,
    kind=Kind.TRAIN,
    epoch=0,
    client_id="c",
    incarnation=1,
    fence=1,
    state=AssignmentState.DELIVERED,
    ranges=(),
    position=0,
    samples=1,
    offered_at=0.0,
    expires_at=1.0,
)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(finite, st.integers(1, 2**40)), min_size=1, max_size=6))
def test_the_mean_of_finite_metrics_is_finite_and_among_them(values: list[tuple[float, int]]) -> None:
    """Two losses of 1.7e308 had an infinite mean, which JSON says as null."""
    records = [replace(DELIVERED, samples=samples, metrics={"loss": loss}) for loss, samples in values]
    mean = mean_metrics(records)["loss"]
    losses = [loss for loss, _ in values]
    slack = 1e-12 * max(abs(loss) for loss in losses)
    assert math.isfinite(mean)
    assert min(losses) - slack <= mean <= max(losses) + slack


@pytest.mark.parametrize("seconds", [5e-324, 1e-300, 1e-9, 1e9])
def test_a_result_that_took_no_time_or_an_age_does_not_stop_the_task(seconds: float) -> None:
    farm = Simulation()
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(rounds=4))
    farm.deliver(ada, seconds=seconds)
    farm.deliver(bob, seconds=1.0)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


@pytest.mark.parametrize("gflops", [1e-6, 1e12])
def test_a_machine_whose_benchmark_is_far_from_the_others_does_not_stop_the_task(gflops: float) -> None:
    farm = Simulation()
    farm.join(Volunteer("ada", gflops=gflops))
    farm.join(Volunteer("bob", gflops=50.0))
    farm.submit(spec(rounds=4))
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


counts = st.sampled_from([0, 1, 2, 10, 2**31, 2**53])
seconds = st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1e9])
rates = st.sampled_from([0.0, 1e-6, 1.0, 1e12])
recipes = st.fixed_dictionaries(
    {
        "round_samples": st.sampled_from([1, 3, 20, 2**53]),
        "batch_samples": st.sampled_from([1, 7, 2**53]),
        "rounds": st.sampled_from([1, 3, 2**53]),
        "epochs": st.sampled_from([None, 1e-9, 0.3, 1e9]),
        "longest_round_seconds": st.sampled_from([1e-3, 30.0, 1e9]),
        "quorum": st.sampled_from([5e-324, 0.5, 1.0]),
        "over_provision": st.sampled_from([0.0, 5e-324, 4.0]),
        "max_staleness": st.sampled_from([0, 16]),
        "keep_checkpoints": st.sampled_from([1, 2**53]),
        "evaluate_every": counts,
        "keep_every": counts,
        "max_retries": counts,
        "gather_seconds": seconds,
        "mode": st.sampled_from(Mode),
    }
)


def odd_event(data: st.DataObject, farm: Simulation, v: Volunteer) -> None:
    """Let a client say something that the protocol lets in, of what it holds or of nothing."""
    assign = v.held[0] if v.held else None
    named = (f"id-{v.name}", v.incarnation, assign.assignment_id if assign else "none", assign.fence if assign else 1)
    progress = AssignmentProgress(
        assignment_id=named[2],
        fence=named[3],
        phase=data.draw(st.sampled_from(Phase)),
        samples_done=data.draw(counts),
        fetched_bytes=data.draw(counts),
        waits=data.draw(counts),
    )
    match data.draw(st.sampled_from(["beat", "accept", "result", "failure", "reject", "ready", "time"])):
        case "beat":
            farm.handle(ClientBeat(named[0], v.incarnation, Load(cpu=1.0, ram_free_bytes=2**60), (progress,)))
        case "accept":
            farm.handle(AssignmentAccepted(*named))
        case "result" if assign is not None:
            v.held.popleft()
            loss = data.draw(st.sampled_from([0.0, -1.7e308, 1.7e308]))
            farm.handle(replace(farm.result(v, assign, loss), compute_seconds=data.draw(seconds)))
        case "failure":
            code = data.draw(st.sampled_from(["task_code", "killed", "out_of_memory", "missing_module", ""]))
            farm.handle(AssignmentFailed(*named, code=code, message="", scope=data.draw(st.sampled_from(Scope))))
        case "reject":
            farm.handle(AssignmentRejected(*named, code=data.draw(st.sampled_from(RejectCode)), message=""))
        case "ready":
            farm.handle(ClientReady(named[0], v.incarnation, data.draw(st.integers(0, 64))))
        case _:
            farm.tick(data.draw(st.sampled_from([0.5, 30.0, 1e6])))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_event_raises_whatever_a_client_says_within_the_protocol(data: st.DataObject) -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(Volunteer(name, gflops=data.draw(rates), ram_bytes=2**60, cpu_cores=2**20))
    recipe = data.draw(recipes)
    if recipe["mode"] is Mode.GRADIENTS:
        recipe |= {"quorum": 1.0, "over_provision": 0.0, "max_staleness": 0}
    farm.submit(spec(shards=(10, data.draw(st.sampled_from([1, 10]))), holdout=(3,), **recipe))
    for _ in range(25):
        odd_event(data, farm, data.draw(st.sampled_from(list(farm.volunteers.values()))))
    assert not any(isinstance(command, ReportDefect) for command in farm.log), "contained, and a defect all the same"
    farm.coordinator.client_views(farm.now)
    TaskView.model_validate_json(farm.view().model_dump_json())
