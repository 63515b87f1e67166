"""No event raises, whatever numbers it brings: what comes past the protocol's bounds must not stop a farm."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.events import (
    AssignmentFailed,
    ClientBeat,
    ClientConnected,
    ClientReady,
    ResultArrived,
    Tick,
)
from coordinator.lifecycle import TaskState
from coordinator.planning import shares
from coordinator.scoring import expected_speeds
from coordinator.stopping import rounds_total
from coordinator.throughput import DecayingSum, MovingAverage
from protocol.assignments import AssignmentProgress, Kind, Phase
from protocol.messages import Hello, Scope
from protocol.resources import Gpu, Load, Resources
from protocol.task_length import samples_of_epochs
from protocol.tasks import BlobRef
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec

ODD = st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, 1e308, -1.0, 0.0, -0.0, 1.0, 50.0, 1e-300])
ODD_INTEGERS = st.sampled_from([0, 1, 7, -1, 2**31, 2**63, 2**64 - 1, 10**30, 10**400])


@given(
    st.integers(1, 2**63),
    st.lists(st.floats(), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3, 1000]),
)
@settings(max_examples=200)
def test_shares_add_up_for_any_speeds(samples: int, speeds: list[float], quantum: int) -> None:
    sizes = shares(samples, {f"c{i}": speed for i, speed in enumerate(speeds)}, quantum)
    assert sum(sizes.values()) == samples
    assert all(n > 0 for n in sizes.values())


def test_ordinary_speeds_are_shared_as_ever() -> None:
    assert shares(100, {"a": 1.0, "b": 3.0, "c": 0.0}, 1) == {"a": 20, "b": 60, "c": 20}
    assert shares(100, {"a": 1.0, "b": 3.0}, 10) == {"a": 30, "b": 70}
    assert shares(7, {"a": math.nan, "b": math.nan}) == {"a": 4, "b": 3}


@pytest.mark.parametrize("epochs", [1e308, 5e-324, math.inf, 0.5, 3.0])
def test_any_number_of_epochs_has_an_end(epochs: float) -> None:
    assert samples_of_epochs(epochs, 40) >= 0
    endless = spec(rounds=None, epochs=1.0)
    recipe = endless.recipe.model_copy(update={"epochs": epochs})
    assert rounds_total(endless.model_copy(update={"recipe": recipe})) >= 1


@given(st.lists(ODD, max_size=10), ODD)
def test_averages_and_sums_stay_numbers(values: list[float], last: float) -> None:
    average, used = MovingAverage(), DecayingSum(10.0)
    for value in (*values, last, 3.0):
        average.add(value)
        used.add(value, 1.0)
    assert average.value is not None
    assert math.isfinite(average.value)
    assert used.read(2.0) >= 0


class Odd:
    """A farm that gets odd numbers in everything that a client or a researcher says."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.farm = Simulation()

    def number(self) -> float:
        return self.draw(ODD)

    def integer(self) -> int:
        return self.draw(ODD_INTEGERS)

    def load(self) -> Load:
        return Load.model_construct(
            cpu=self.number(), ram_free_bytes=self.integer(), disk_free_bytes=self.integer(), gpus=()
        )

    def join(self, name: str) -> None:
        gpu = Gpu.model_construct(index=0, name="g", memory_bytes=self.integer(), memory_free_bytes=self.integer())
        resources = Resources.model_construct(
            cpu_cores=max(self.integer(), 1),
            ram_bytes=max(self.integer(), 2**40),
            bench_gflops=self.number(),
            gpus=(gpu,),
        )
        volunteer = self.farm.volunteers[name] = Volunteer(name, incarnation=self.farm._incarnation + 1, online=True)
        self.farm._incarnation += 1
        hello = volunteer.hello().model_copy(update={"resources": resources, "load": self.load()})
        assert isinstance(hello, Hello)
        self.farm.handle(ClientConnected(hello, "hash", volunteer.incarnation))
        self.farm.handle(ClientReady(f"id-{name}", volunteer.incarnation, self.draw(st.sampled_from([0, 1, 2, 2**63]))))

    def work(self, volunteer: Volunteer) -> None:
        if not volunteer.held:
            return
        assign = volunteer.held.popleft()
        here = (f"id-{volunteer.name}", volunteer.incarnation, assign.assignment_id, assign.fence)
        progress = AssignmentProgress.model_construct(
            assignment_id=assign.assignment_id,
            fence=assign.fence,
            phase=Phase.COMPUTING,
            samples_done=self.integer(),
            samples_per_second=self.number(),
        )
        self.farm.handle(ClientBeat(*here[:2], self.load(), (progress,)))
        if not self.draw(st.integers(0, 4)):
            self.farm.handle(AssignmentFailed(*here, code="x", message="y", scope=self.draw(st.sampled_from(Scope))))
            return
        update = BlobRef.model_construct(digest=blob(assign.assignment_id).digest, size_bytes=3, inline=b"abc")
        metrics = {"loss": self.number(), "other": self.number()}
        samples = assign.samples if self.draw(st.integers(0, 4)) else self.integer()
        update_or_none = update if assign.kind is Kind.TRAIN else None
        self.farm.handle(ResultArrived(*here, samples, metrics, update_or_none, self.number()))
        self.farm.handle(ClientReady(*here[:2], 1))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_event_raises(data: st.DataObject) -> None:
    odd = Odd(data.draw)
    farm = odd.farm
    task = spec(
        holdout=(5,), rounds=None, epochs=1.0, evaluate_every=1, max_clients=odd.draw(st.sampled_from([None, 2]))
    )
    epochs = odd.draw(st.sampled_from([1e308, 5e-324, math.inf, 1.0]))
    longest = odd.draw(st.sampled_from([1e308, 5e-324, 600.0]))
    recipe = task.recipe.model_copy(update={"epochs": epochs, "longest_round_seconds": longest})
    farm.submit(task.model_copy(update={"recipe": recipe}), "odd")
    farm.submit(spec(rounds=1), "plain")
    for name in ("ada", "bob", "eve"):
        odd.join(name)
    for _ in range(8):
        odd.work(farm.volunteers[odd.draw(st.sampled_from(["ada", "bob", "eve"]))])
        farm.now += odd.draw(st.sampled_from([0.0, 0.5, 30.0]))
        farm.handle(Tick())
    clients = list(farm.coordinator._farm.clients.values())
    for run in farm.coordinator._farm.tasks.values():
        assert all(0 < s < math.inf for s in expected_speeds(run, clients).values())
        farm.coordinator.explain(run.task_id, farm.now)
        farm.coordinator.why(run.task_id, farm.now)
    for task_id in farm.ledger.tasks:
        farm.view(task_id)
        farm.coordinator.explain_ended(farm.task(task_id), farm.now)
    farm.coordinator.task_views(farm.now)
    assert farm.task("plain").state in TaskState
