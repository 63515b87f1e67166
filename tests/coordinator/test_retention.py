"""Which checkpoints of a task stay: the newest, every Nth, the best by a metric, and the initial one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.records import CheckpointRecord
from coordinator.retention import HistoryPolicy, best_checkpoint, kept_rounds
from protocol.recipe import Recipe
from tests.storage import records as a

_metrics = st.none() | st.sampled_from([0.0, 0.5, 1.0, -1.0, math.inf, -math.inf, math.nan])
_checkpoints = st.dictionaries(st.integers(0, 30), _metrics, max_size=12).map(
    lambda rated: [checkpoint(number, value) for number, value in rated.items()]
)


def checkpoint(number: int, accuracy: float | None = None) -> CheckpointRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return a.checkpoint(round=number, metrics={"loss": 1.0} | metrics)


def recipe(**options: object) -> Recipe:
    return Recipe.model_validate({"rounds": 100, **options})


def rounds(numbers: Sequence[int]) -> list[CheckpointRecord]:
    return [checkpoint(number) for number in numbers]


@pytest.mark.parametrize(
    ("numbers", "options", "kept"),
    [
        ([], {"keep_checkpoints": 2}, set()),
        ([0], {"keep_checkpoints": 2}, {0}),
        (range(6), {"keep_checkpoints": 2}, {0, 4, 5}),
        (range(3, 9), {"keep_checkpoints": 2}, {7, 8}),  # the initial one was never here
        (range(9), {"keep_checkpoints": 1, "keep_every": 3}, {0, 3, 6, 8}),
        ([2, 5, 7], {"keep_checkpoints": 1, "keep_every": 5}, {5, 7}),
        ([9, 1, 5], {"keep_checkpoints": 2}, {5, 9}),  # in whatever order they come
    ],
)
def test_the_newest_every_nth_and_the_initial_one_stay(
    numbers: Sequence[int], options: dict[str, object], kept: set[int]
) -> None:
    assert kept_rounds(rounds(numbers), recipe(**options)) == kept


@pytest.mark.parametrize(("rule", "best"), [("max:accuracy", 2), ("min:accuracy", 1), ("max:unheard_of", None)])
def test_the_best_by_a_metric_stays(rule: str, best: int | None) -> None:
    rated = [checkpoint(1, 0.1), checkpoint(2, 0.9), checkpoint(3, 0.5), checkpoint(4), checkpoint(5)]
    assert kept_rounds(rated, recipe(keep_checkpoints=1, keep_best=rule)) == {5} | ({best} - {None})


def test_of_equals_the_newer_is_the_best() -> None:
    found = best_checkpoint([checkpoint(3, 0.5), checkpoint(7, 0.5), checkpoint(5, 0.5)], "min:accuracy")
    assert found is not None
    assert found.round == 7


def test_without_a_rule_none_is_best() -> None:
    assert best_checkpoint([checkpoint(1, 0.5)], None) is None


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("rule", ["max:accuracy", "min:accuracy"])
def test_a_value_that_is_no_number_is_not_the_best(order: int, rule: str) -> None:
    """A round that diverged measures NaN, which compares to nothing: it must not push out the best one."""
    rated = [checkpoint(1, math.nan), checkpoint(2, 0.5), checkpoint(3, math.nan)][::order]
    found = best_checkpoint(rated, rule)
    assert found is not None
    assert found.round == 2
    assert best_checkpoint([checkpoint(1, math.nan)], rule) is None


@given(rated=_checkpoints, direction=st.sampled_from(["max", "min"]))
def test_no_kept_value_is_better_than_the_best(rated: list[CheckpointRecord], direction: str) -> None:
    best = best_checkpoint(rated, f"{direction}:accuracy")
    finite = [c.metrics["accuracy"] for c in rated if math.isfinite(c.metrics.get("accuracy", math.nan))]
    assert (best is None) == (not finite)
    if best is not None:
        assert best.metrics["accuracy"] == (max if direction == "max" else min)(finite)


@given(
    rated=_checkpoints,
    keep=st.integers(1, 5),
    every=st.none() | st.integers(1, 7),
    rule=st.none() | st.just("max:accuracy"),
)
def test_what_stays_is_here_and_keeps_its_promises_and_collecting_twice_removes_no_more(
    rated: list[CheckpointRecord], keep: int, every: int | None, rule: str | None
) -> None:
    options = recipe(keep_checkpoints=keep, keep_best=rule, **({} if every is None else {"keep_every": every}))
    kept = kept_rounds(rated, options)
    here = {c.round for c in rated}
    assert kept <= here
    assert kept >= set(sorted(here)[-keep:]) | ({0} & here)
    left = [c for c in rated if c.round in kept]
    assert kept_rounds(left, options) == kept


class TestHistoryPolicy:
    """How much of a task's past stays, and for how long after its end."""

    policy = HistoryPolicy(log_lines=20_000, metric_points=100_000, events=5_000, ended_seconds=7 * 86400)

    @pytest.mark.parametrize(
        ("finished_at", "now", "stale"),
        [(None, 1e12, False), (0.0, 7 * 86400, False), (0.0, 7 * 86400 + 0.5, True), (100.0, 0.0, False)],
    )
    def test_history_goes_some_time_after_the_end(self, finished_at: float | None, now: float, stale: bool) -> None:
        assert self.policy.is_stale(finished_at, now) is stale

    def test_it_says_itself_in_a_line(self) -> None:
        said = str(self.policy)
        for words in ("20,000 log lines", "100,000 metric values", "5,000 events", "7 days"):
            assert words in said
