"""A task that ends before its recipe does: good enough, no better for a while, or out of time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import early_stopping
from coordinator.lifecycle import TaskState
from coordinator.stopping import is_finished
from protocol.contradictions import contradiction
from protocol.recipe import Recipe, parse_target
from tests.coordinator.farm_simulation import Simulation, spec
from tests.storage import records


def judged(metrics: list[dict[str, float]], **recipe: object):
    task = records.task("t", spec=spec(rounds=100, **recipe))
    for number, found in enumerate(metrics, start=1):
        task = early_stopping.evaluated(replace(task, version=number, metrics=found))
    return task


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss": value} for value in values]


def test_it_goes_on_while_the_metric_gets_better_now_and_then() -> None:
    task = judged(losses(1.0, 1.1, 0.9, 0.95, 0.8), keep_best="min:loss", patience=2)
    assert (task.best_value, task.stale_evaluations, task.stopped) == (0.8, 0, None)


def test_it_stops_after_so_many_evaluations_without_a_better_one() -> None:
    task = judged(losses(1.0, 0.9, 0.9, 1.0), keep_best="min:loss", patience=2)
    assert task.stopped == "loss was no better than 0.9 in 2 evaluations"
    assert is_finished(task)


def test_more_can_be_better() -> None:
    task = judged([{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.6}], keep_best="max:accuracy", patience=1)
    assert task.stopped == "accuracy was no better than 0.7 in 1 evaluation"


def test_what_is_no_number_is_no_better() -> None:
    task = judged([*losses(float("nan")), {"other": 1.0}], keep_best="min:loss", patience=2)
    assert (task.best_value, task.stopped) == (None, "loss was no better in 2 evaluations")


@pytest.mark.parametrize(
    ("target", "metrics", "stops"),
    [
        ("loss<=0.5", {"loss": 0.5}, True),
        ("loss <= 0.5", {"loss": 0.51}, False),
        ("accuracy>=0.9", {"accuracy": 0.95}, True),
        ("accuracy>=.9", {"accuracy": 0.85}, False),
        ("loss<=-1e-3", {"loss": -0.01}, True),
        ("loss<=0.5", {"loss": float("nan")}, False),
        ("loss<=0.5", {"accuracy": 0.1}, False),
    ],
)
def test_a_target_is_reached_or_not(target: str, metrics: dict[str, float], stops: bool) -> None:
    assert bool(judged([metrics], target=target).stopped) is stops


@pytest.mark.parametrize("text", ["loss", "loss<0.5", "loss=0.5", "<=0.5", "loss<=half", "loss<=", "loss<=nan"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no target"):
        Recipe(rounds=1, target=text)
    with pytest.raises(ValueError, match="is no target"):
        parse_target(text)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"patience": 3}, "add keep_best"),
        ({"target": "loss<=1", "evaluate_every": 0}, "evaluate_every is 0"),
        ({"target": "loss<=1"}, "give a holdout"),
    ],
)
def test_what_can_never_be_judged_is_a_contradiction(recipe: dict[str, object], said: str) -> None:
    task = spec(rounds=3, **recipe)
    assert said in str(contradiction(task.recipe, task.dataset))


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-10, 10), st.just(float("nan"))), max_size=12),
    patience=st.integers(1, 4),
    more_is_better=st.booleans(),
)
def test_patience_is_what_a_reader_of_the_list_would_count(
    values: list[float | None], patience: int, more_is_better: bool
) -> None:
    rule = "max:quality" if more_is_better else "min:quality"
    metrics = [{} if value is None else {"quality": value} for value in values]
    task = judged(metrics, keep_best=rule, patience=patience)
    best, best_at, stops = None, -1, False
    for place, value in enumerate(values):
        is_number = value is not None and not math.isnan(value)
        if is_number and (best is None or (value > best if more_is_better else value < best)):
            best, best_at = value, place
        stops = stops or place - best_at >= patience
    assert (task.best_value, bool(task.stopped)) == (best, stops)


def test_a_task_completes_at_its_target_and_says_so() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), holdout=(5,), rounds=50, target="loss<=100"))
    farm.deliver(ada)
    farm.deliver(ada)
    assert (farm.task().state, farm.task().version) == (TaskState.COMPLETED, 1)
    assert "the target is reached" in farm.task().reason


def test_a_task_whose_time_is_up_is_evaluated_once_more_and_completes() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), holdout=(5,), rounds=50, evaluate_every=50, max_seconds=2.5))
    while farm.task().state is not TaskState.COMPLETED:
        farm.now += 1.0
        farm.deliver(ada)
    assert farm.task().version == 4, "it began with the first acceptance"
    assert farm.task().metrics, "evaluated at its end"
    assert farm.task().reason == "trained 4 rounds, and stopped: its time is up: 2.5 s since it began"


def test_time_that_ran_out_in_a_round_that_is_undone_runs_out_again() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), rounds=50, max_seconds=1.5))
    farm.deliver(ada)
    farm.hold_writes = True
    farm.now += 2.0
    farm.deliver(ada)
    assert farm.coordinator._farm.tasks["t1"].record.stopped
    farm.restart()
    farm.hold_writes = False
    assert farm.task().stopped is None
