"""What one client sends in a round is one vote, whatever its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.numerics.aggregate import Aggregate
from coordinator.numerics.robust import Median, TrimmedMean
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import TensorReader
from protocol.encoded import untouched_metadata
from protocol.tensors import Layout, Role, TensorSpec

LAYOUT: Final = Layout((TensorSpec("count", "I64", (2,), Role.BUFFER), TensorSpec("w", "F32", (20,))))
MAKERS: Final = [Median, partial(TrimmedMean, trim_share=0.2)]
Part = tuple[str, torch.Tensor, int]


def updated(values: torch.Tensor, count: int = 0) -> TensorReader:
    return TensorReader({"w": values, "count": torch.tensor([count, -count])})


def aggregated(aggregate: Aggregate, parts: Sequence[Part]) -> torch.Tensor:
    for client, values, samples in parts:
        aggregate.fold(updated(values), samples, client=client)
    return aggregate.result()["w"]


def leaving_alone(names: list[str]) -> TensorReader:
    return TensorReader({"w": drawn(1), "count": torch.zeros(2, dtype=torch.int64)}, untouched_metadata(names))


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(20, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40)
@given(
    parts=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 5000)), min_size=1, max_size=12),
    make=st.sampled_from(MAKERS),
)
def test_a_clients_parts_are_averaged_by_samples_and_are_one_vote(parts: list[tuple[str, int]], make) -> None:
    sent = [(client, drawn(seed), samples) for seed, (client, samples) in enumerate(parts)]
    means = {
        client: np.average(
            [values.double().numpy() for c, values, _ in sent if c == client],
            axis=0,
            weights=[samples for c, _, samples in sent if c == client],
        )
        for client in {client for client, _, _ in sent}
    }
    alone = [(client, torch.from_numpy(mean).float(), 1) for client, mean in means.items()]
    found, expected = aggregated(make(LAYOUT, None), sent), aggregated(make(LAYOUT, None), alone)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_a_liar_with_most_of_the_parts_still_has_one_vote(make) -> None:
    honest: list[Part] = [("a", drawn(1), 10), ("b", drawn(2), 10)]
    lies: list[Part] = [("liar", torch.full((20,), 1e30), 5000)] * 7
    low, high = torch.stack([values for _, values, _ in honest]).aminmax(dim=0)
    found = aggregated(make(LAYOUT, None), [*lies[:4], *honest, *lies[4:]])
    assert ((low <= found) & (found <= high)).all()


def test_whose_an_update_is_makes_no_difference_to_the_mean() -> None:
    parts: list[Part] = [("a", drawn(1), 3), ("b", drawn(2), 5), ("a", drawn(3), 4)]
    by_name = aggregated(WeightedMean(LAYOUT), parts).clone()
    assert torch.equal(by_name, aggregated(WeightedMean(LAYOUT), [("x", *rest) for _, *rest in parts]))


def test_updates_of_nobody_in_particular_are_votes_of_their_own() -> None:
    aggregate = Median(LAYOUT)
    for value in (1.0, 2.0, 9.0):
        aggregate.fold(updated(torch.full((20,), value)), 1)
    assert aggregate.result()["w"].unique().tolist() == [2.0]


def test_of_a_clients_counters_the_largest_is_its_vote() -> None:
    aggregate = Median(LAYOUT)
    for client, count in (("a", 3), ("a", 8), ("b", 5), ("c", 6)):
        aggregate.fold(updated(torch.zeros(20), count), 1, client=client)
    assert aggregate.result()["count"].tolist() == [6, -5]  # of 8, 5, 6 and of -3, -5, -6


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.sampled_from([0.1, 3.4e38, -1e-30, 7.0]))
def test_what_all_parts_of_a_client_agree_on_stays_as_it_is(samples: list[int], value: float) -> None:
    same = torch.full((20,), value)
    assert torch.equal(aggregated(Median(LAYOUT), [("a", same, count) for count in samples]), same)


def test_a_clients_mean_of_huge_numbers_of_either_sign_is_finite() -> None:
    huge = torch.full((20,), 3.4e38)
    assert aggregated(Median(LAYOUT), [("a", huge, 1), ("a", -huge, 1)]).abs().max() < 1e32


def test_a_parameter_is_touched_by_a_client_if_any_of_its_parts_touches_it() -> None:
    aggregate = Median(LAYOUT)
    sent = [("a", ["w"]), ("a", []), ("b", []), ("c", ["w"])]
    for client, names in sent:
        aggregate.fold(leaving_alone(names), 1, client=client)
    assert aggregate.untouched == frozenset()
    for client in "de":
        aggregate.fold(leaving_alone(["w"]), 1, client=client)
    assert aggregate.untouched == {"w"}  # by three of five: two may lie
