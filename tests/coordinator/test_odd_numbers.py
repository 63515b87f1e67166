"""Numbers at the edges, within what the protocol lets in: nothing that is computed from them is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import AssignmentRecord
from coordinator.rounds import mean_metrics
from protocol.messages import Kind
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
