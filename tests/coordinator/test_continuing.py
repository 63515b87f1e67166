"""``n`` rounds and then ``m`` more are ``n + m`` rounds: the same work in the same order, by the same books."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.continuing import at_start, check_goes_on, start_from
from coordinator.lifecycle import TaskState
from coordinator.records import CheckpointRecord, SampleRange, TaskRecord
from protocol.assignments import Assign
from protocol.errors import InvalidTask
from protocol.recipe import InnerState, Mode, OuterOptimizer
from protocol.tasks import BlobRef, Origin, TaskSpec
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec

Work = list[tuple[object, ...]]


def work_of(farm: Simulation, task_id: str) -> Work:
    """What the one client was asked to do: where in the task, which samples, from which weights."""
    return [
        (m.round, m.epoch, m.slices, m.samples_before, m.round_samples)
        for m in farm.volunteers["ada"].messages
        if isinstance(m, Assign) and m.task.task_id == task_id
    ]


def farm_with(task: TaskSpec) -> Simulation:
    farm = Simulation()
    farm.join(Volunteer("ada", features=("carried_state",)))
    farm.submit(task)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    return farm


def go_on(farm: Simulation, number: int, rounds: int, **changes: object) -> CheckpointRecord:
    before = farm.task().spec
    kept = farm.ledger.checkpoints["t1", number]
    after = before.model_copy(
        update={
            "recipe": before.recipe.model_copy(update={"rounds": rounds, **changes}),
            "initial_weights": kept.weights,
            "continues": Origin(task_id="t1", round=number),
        }
    )
    start = start_from("t2", after, before, kept)
    farm.submit(after, "t2", start)
    return start


@settings(max_examples=60)
@given(
    shards=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    round_samples=st.integers(1, 30),
    first=st.integers(1, 5),
    more=st.integers(1, 5),
    mode=st.sampled_from(Mode),
)
def test_n_rounds_and_m_more_are_the_work_of_n_plus_m(
    shards: list[int], round_samples: int, first: int, more: int, mode: Mode
) -> None:
    recipe = {"shards": tuple(shards), "round_samples": round_samples, "mode": mode}
    whole = farm_with(spec(rounds=first + more, **recipe))
    parted = farm_with(spec(rounds=first, **recipe))
    go_on(parted, first, first + more)
    parted.run()
    assert work_of(parted, "t1") + work_of(parted, "t2") == work_of(whole, "t1")
    one, other = whole.task(), parted.task("t2")
    assert (one.version, one.epoch, one.cursor, one.samples_done) == (
        other.version,
        other.epoch,
        other.cursor,
        other.samples_done,
    )


def test_it_begins_with_the_states_of_the_checkpoint_and_survives_a_restart() -> None:
    farm = farm_with(spec(rounds=3, inner_state=InnerState.CARRIED))
    start = go_on(farm, 3, 5)
    assert start.inner_state == farm.ledger.checkpoints["t1", 3].inner_state
    farm.restart()
    farm.join("ada")
    farm.run()
    first = next(m for m in farm.volunteers["ada"].messages if isinstance(m, Assign) and m.task.task_id == "t2")
    assert (first.round, first.weights.digest) == (3, start.weights.digest)
    assert first.inner_state is not None
    assert first.inner_state.digest == start.inner_state.digest
    assert (farm.task("t2").state, farm.task("t2").version) == (TaskState.COMPLETED, 5)


def test_an_earlier_round_is_a_start_as_well() -> None:
    farm = farm_with(spec(rounds=4))
    go_on(farm, 2, 4)
    farm.run()
    assert [round_ for round_, *_ in work_of(farm, "t2")] == [2, 3]


def test_a_continued_task_can_be_continued() -> None:
    farm = farm_with(spec(rounds=2))
    go_on(farm, 2, 3)
    farm.run()
    before, kept = farm.task("t2").spec, farm.ledger.checkpoints["t2", 3]
    after = before.model_copy(
        update={"recipe": before.recipe.model_copy(update={"rounds": 4}), "initial_weights": kept.weights}
    )
    farm.submit(after, "t3", start_from("t3", after, before, kept))
    farm.run()
    assert work_of(farm, "t1") + work_of(farm, "t2") + work_of(farm, "t3") == work_of(farm_with(spec()), "t1")


STATE = BlobRef(digest="5" * 64, size_bytes=5)


def checkpoint(task: TaskSpec, **changes: object) -> CheckpointRecord:
    made = CheckpointRecord("t1", 4, 1, 30, task.initial_weights, STATE, blob("manifest"), 9.0, inner_state=STATE)
    return replace(made, **changes)


def test_what_does_not_fit_is_left_behind() -> None:
    before = spec()
    after = spec(outer=OuterOptimizer(name="adam", options={"lr": 0.1}))
    start = start_from("t2", after, before, checkpoint(before))
    assert (start.task_id, start.round, start.optimizer, start.manifest) == ("t2", 4, None, None)
    assert start_from("t2", before, before, checkpoint(before)).optimizer == STATE


def test_samples_that_are_still_owed_are_not_counted_as_trained() -> None:
    task = spec()
    record = TaskRecord("t2", task, TaskState.PENDING, 0.0)
    owed = (SampleRange(0, 2, 5),)
    begun = at_start(record, checkpoint(task, leftover=owed, metrics={"loss": 0.5}))
    assert (begun.version, begun.epoch, begun.cursor, begun.leftover) == (4, 1, 30, owed)
    assert begun.samples_done == 40 + 30 - 3
    assert begun.metrics == {"loss": 0.5}


def test_what_can_not_go_on_is_refused() -> None:
    before = spec()
    with pytest.raises(InvalidTask, match="not those of t1@4"):
        start_from("t2", before.model_copy(update={"initial_weights": blob("others")}), before, checkpoint(before))
    with pytest.raises(InvalidTask, match="seed"):
        start_from("t2", spec(seed=3), before, checkpoint(before))
    record = at_start(TaskRecord("t2", spec(rounds=4), TaskState.PENDING, 0.0), checkpoint(before))
    with pytest.raises(InvalidTask, match=r"4 rounds were trained before; give more --rounds"):
        check_goes_on(record)
    check_goes_on(replace(record, spec=spec(rounds=5)))
