"""What can never be met is said, and nothing else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.contradictions import contradiction
from protocol.recipe import InnerState, Recipe
from protocol.tasks import Dataset, Shard, Split, TaskBrief
from tests.protocol import samples

HELD_OUT = Dataset(kind="code", shards=(Shard(index=0, samples=100), Shard(index=1, samples=10, split=Split.HOLDOUT)))
NOTHING_HELD_OUT = Dataset(kind="code", shards=(Shard(index=0, samples=100),))
FEW = st.integers(1, 6)


@given(least=FEW, first=FEW | st.none(), most=FEW | st.none())
def test_clients_that_a_round_needs_and_may_have(least: int, first: int | None, most: int | None) -> None:
    recipe = Recipe(rounds=1, min_clients=least, init_min_clients=first, max_clients=most)
    can_be_met = most is None or (least <= most and (first or 1) <= most)
    assert (contradiction(recipe, HELD_OUT) is None) is can_be_met


@pytest.mark.parametrize(
    ("recipe", "dataset", "said"),
    [
        (Recipe(rounds=1, keep_best="max:accuracy"), HELD_OUT, None),
        (Recipe(rounds=1, keep_best="max:accuracy"), None, None),
        (Recipe(rounds=1, keep_best="max:accuracy"), NOTHING_HELD_OUT, "held-out samples"),
        (Recipe(rounds=1, keep_best="max:accuracy", evaluate_every=0), HELD_OUT, "evaluate_every is 0"),
        (Recipe(rounds=1, min_clients=4, round_samples=4), HELD_OUT, None),
        (Recipe(rounds=1, min_clients=5, round_samples=4), HELD_OUT, "4 samples cannot be shared by 5 clients"),
        (Recipe(rounds=1, min_clients=5, round_samples=4), None, None),
    ],
)
def test_pairs_that_need_each_other(recipe: Recipe, dataset: Dataset | None, said: str | None) -> None:
    why = contradiction(recipe, dataset)
    assert why is None if said is None else said in (why or "")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_clients": 3}, None),
        ({"min_clients": 2}, "min_clients is 2: make it 3 or more"),
        ({"min_clients": 3, "init_min_clients": 1}, "init_min_clients is 1: make it 3 or more"),
        ({"min_clients": 3, "round_samples": 95, "batch_samples": 32}, "a round has 2 at most"),
        ({"min_clients": 3, "round_samples": 20, "batch_samples": 32}, "a round has 1 at most"),
        ({"min_clients": 3, "round_samples": 96, "batch_samples": 32}, None),
        ({"min_clients": 3, "round_samples": 3, "mode": "gradients"}, None),
        ({"min_clients": 3, "round_samples": 96, "parts": "fixed"}, None),
        ({"min_clients": 3, "round_samples": 96, "parts": "fixed", "part_samples": 48}, "a round has 2 at most"),
        ({"min_clients": 3, "round_samples": 96, "parts": "fixed", "part_samples": 33}, None),
    ],
)
def test_a_robust_aggregate_needs_three_votes(fields: dict[str, Any], said: str | None) -> None:
    why = contradiction(Recipe(rounds=1, aggregate="median", **fields), HELD_OUT)
    assert why is None if said is None else said in (why or "")
    assert contradiction(Recipe(rounds=1, **fields), HELD_OUT) is None


@pytest.mark.parametrize(
    ("aggregate", "byzantine", "need"), [("krum", 1, 5), ("multi_krum", 2, 7), ("bulyan", 1, 7), ("bulyan", 2, 11)]
)
def test_who_counts_liars_needs_so_many_clients(aggregate: str, byzantine: int, need: int) -> None:
    fields = {"rounds": 1, "aggregate": aggregate, "byzantine": byzantine, "round_samples": 1024}
    why = contradiction(Recipe.model_validate(fields | {"min_clients": need - 1}), HELD_OUT) or ""
    assert f"with byzantine = {byzantine} needs {need} clients or more in each round" in why
    assert contradiction(Recipe.model_validate(fields | {"min_clients": need}), HELD_OUT) is None
    few = Recipe.model_validate(fields | {"min_clients": need, "round_samples": 32 * (need - 1)})
    assert f"a round has {need - 1} at most" in (contradiction(few, HELD_OUT) or "")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"aggregate": "krum"}, "byzantine"),
        ({"aggregate": "bulyan", "byzantine": 0}, "byzantine"),
        ({"aggregate": "median", "byzantine": 1}, "need each other"),
        ({"byzantine": 1}, "need each other"),
        ({"aggregate": "krum", "byzantine": 1, "norm_bound": 1.0}, "norm_bound is for"),
        ({"norm_bound": 1.0}, "norm_bound is for"),
        ({"aggregate": "norm_bounding", "norm_bound": 0.0}, "norm_bound"),
        ({"aggregate": "geometric_median", "max_staleness": 1}, "leave out max_staleness"),
        ({"aggregate": "centered_clipping", "inner_state": "carried"}, "a mean can be spoilt"),
    ],
)
def test_what_an_aggregate_lacks_or_cannot_use_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"rounds": 1, "min_clients": 7, **fields})


@pytest.mark.parametrize("robust", [{"aggregate": "median"}, {"aggregate": "trimmed_mean", "trim_share": 0.1}])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_staleness": 1}, "leave out max_staleness"),
        ({"max_staleness": 1, "pipeline": True}, "leave out max_staleness"),
        ({"update_codec": {"name": "topk"}}, "update_codec topk sends few"),
        ({"update_codec": {"name": "sparseloco"}}, "update_codec sparseloco sends few"),
        ({"update_codec": {"name": "demo"}}, "update_codec demo sends few"),
    ],
)
def test_what_needs_weights_or_sums_is_refused_with_a_robust_aggregate(
    robust: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    assert Recipe(rounds=1, **fields).aggregate == "mean"
    with pytest.raises(ValidationError, match=said):
        Recipe(rounds=1, min_clients=3, **robust, **fields)


@pytest.mark.parametrize("codec", ["none", "fp16", "bf16", "int8", "int4", "sign", "powersgd"])
def test_codecs_that_send_a_value_for_every_element_suit_every_aggregate(codec: str) -> None:
    for aggregate in ({"aggregate": "median"}, {"aggregate": "trimmed_mean", "trim_share": 0.49}):
        assert Recipe(rounds=1, min_clients=3, update_codec={"name": codec}, **aggregate).update_codec.name == codec


@pytest.mark.parametrize(
    "fields",
    [
        {"aggregate": "trimmed_mean"},
        {"aggregate": "trimmed_mean", "trim_share": 0.0},
        {"aggregate": "trimmed_mean", "trim_share": 0.5},
        {"aggregate": "trimmed_mean", "trim_share": -0.1},
        {"aggregate": "median", "trim_share": 0.1},
        {"trim_share": 0.1},
        {"trim_share": float("nan")},
    ],
)
def test_a_share_is_for_the_trimmed_mean_and_has_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="trim_share"):
        Recipe(rounds=1, min_clients=3, **fields)


def test_a_recipe_of_before_is_of_the_mean() -> None:
    old = Recipe(rounds=1).model_dump(mode="json", exclude={"aggregate", "trim_share"})
    assert Recipe.model_validate(old) == Recipe(rounds=1, aggregate="mean")


CARRIED = {"rounds": 1, "inner_state": "carried"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": "gradients"}, "the server has the optimizer"),
        ({"pipeline": True, "max_staleness": 1}, 'use "kept", or leave pipeline out'),
        ({"aggregate": "median", "min_clients": 3}, "a mean can be spoilt"),
        ({"aggregate": "trimmed_mean", "trim_share": 0.2}, "a mean can be spoilt"),
    ],
)
def test_a_state_is_not_carried_where_none_would_be_there_or_safe(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Recipe.model_validate(CARRIED | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_clients": 1},
        {"max_staleness": 2, "over_provision": 0.5, "quorum": 0.5},
        {"update_codec": {"name": "int8"}, "weights_codec": {"name": "int8"}},
        {"parts": "fixed"},
    ],
)
def test_a_state_is_carried_beside_all_else(fields: dict[str, Any]) -> None:
    assert Recipe.model_validate(CARRIED | fields).inner_state is InnerState.CARRIED


@pytest.mark.parametrize(("said", "meant"), [(True, InnerState.KEPT), (False, InnerState.FRESH)])
def test_older_peers_say_keep_inner_optimizer(said: bool, meant: InnerState) -> None:
    older = {"rounds": 1, "keep_inner_optimizer": said}
    assert Recipe.model_validate(older).inner_state is meant
    assert Recipe.model_validate_json(json.dumps(older)).inner_state is meant
    assert Recipe.model_validate(older | CARRIED).inner_state is InnerState.CARRIED
    brief = samples.BRIEF.model_dump(exclude={"inner_state"}) | {"keep_inner_optimizer": said}
    assert TaskBrief.model_validate(brief).inner_state is meant


def laid_out(*sizes: int, stride: int, held: int = 0) -> Dataset:
    shards = [Shard(index=i, samples=n, stride=stride) for i, n in enumerate(sizes)]
    kept = [Shard(index=len(sizes), samples=held, stride=1, split=Split.HOLDOUT)] if held else []
    return Dataset(kind="code", shards=(*shards, *kept))


ORDERED = {"rounds": 1, "order": "sequential", "batch_samples": 4, "min_clients": 2, "round_samples": 16}


@pytest.mark.parametrize(
    ("fields", "data", "said"),
    [
        ({}, laid_out(8, 8, 4, 4, stride=3, held=4), None),
        ({"round_samples": 20}, laid_out(8, 8, 4, 4, stride=3), "make round_samples, which is 20, a multiple of 8"),
        ({"batch_samples": 2}, laid_out(8, 8, 4, 4, stride=3), "was laid out for other batch_samples or min_clients"),
        ({"min_clients": 1}, laid_out(8, 8, 4, 4, stride=3), "was laid out for other"),
        ({"min_clients": 4}, laid_out(8, 8, 4, 4, stride=3), "was laid out for other"),
        ({}, laid_out(8, 8, 4, stride=3), "was laid out for other"),
        ({}, laid_out(8, 4, 8, 4, stride=3), "was laid out for other"),
        ({}, laid_out(6, 6, 6, 6, stride=3), "was laid out for other"),
        ({}, laid_out(8, 8, 4, 4, stride=3, held=5), "was laid out for other"),
        ({}, NOTHING_HELD_OUT, "or in no order"),
        ({"order": "shuffled"}, laid_out(8, 8, stride=2), 'to be read in order: add order = "sequential"'),
    ],
)
def test_rows_in_order_need_data_that_was_laid_out_for_them(
    fields: dict[str, Any], data: Dataset, said: str | None
) -> None:
    why = contradiction(Recipe(**{**ORDERED, **fields}), data)
    assert why is None if said is None else said in (why or "")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "gradients"}, "gradients mode takes a whole round as one step, in which no batch comes before"),
        ({"parts": "speed"}, 'parts = "speed" cuts a round anywhere: leave parts out'),
        ({"part_samples": 4}, "one part of each stretch, min_clients in all: leave part_samples out"),
        ({"inner_state": "kept"}, 'use "carried"'),
        ({"quorum": 0.5}, "leave them out"),
        ({"max_staleness": 1}, "leave them out"),
    ],
)
def test_what_would_read_rows_in_another_order_is_refused(fields: dict[str, Any], said: str) -> None:
    assert Recipe(**ORDERED).parts == "fixed"
    with pytest.raises(ValidationError, match=said):
        Recipe(**{**ORDERED, **fields})
