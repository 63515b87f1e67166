from __future__ import annotations

from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.numerics.aggregates import aggregate_of
from coordinator.numerics.private_mean import Noise, PrivateMean
from protocol.codecs import TensorReader
from protocol.encoded import untouched_metadata
from protocol.recipe import Recipe
from protocol.tensors import Layout, TensorSpec
from tests.coordinator.numerics.aggregate_references import clipped_mean

ELEMENTS: Final = 9
LAYOUT: Final = Layout((TensorSpec("w", "F64", (ELEMENTS,)),))


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64)


def ones(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.float64)


def aggregated(votes: np.ndarray, clip: float, noise: Noise = zeros, multiplier: float = 1.0) -> np.ndarray:
    aggregate = PrivateMean(LAYOUT, None, clip, multiplier, noise)
    for number, vote in enumerate(votes):
        aggregate.fold(TensorReader({"w": torch.from_numpy(vote)}), number + 1)
    return aggregate.result()["w"].numpy().copy()


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, ELEMENTS))


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(0.1, 9), st.floats(0.1, 5))
def test_it_is_the_clipped_mean_with_so_much_noise_on_the_sum(count: int, seed: int, clip: float, z: float) -> None:
    votes = drawn(count, seed)
    expected = clipped_mean(votes, np.zeros(ELEMENTS), clip)
    np.testing.assert_allclose(aggregated(votes, clip), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(aggregated(votes, clip, ones, z), expected + z * clip / count, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(0.1, 9), st.floats(1e-3, 1e9))
def test_no_client_changes_the_sum_by_more_than_the_clip(count: int, seed: int, clip: float, size: float) -> None:
    votes = drawn(count, seed) * size
    without = votes.copy()
    without[0] = 0
    change = count * (aggregated(votes, clip) - aggregated(without, clip))
    assert np.linalg.norm(change) <= clip * (1 + 1e-9)


def test_a_clients_parts_are_cut_down_together() -> None:
    aggregate = PrivateMean(LAYOUT, None, 1.0, 1.0, zeros)
    for client in ("a", "a", "a", "b"):
        values = 100.0 if client == "a" else 0.0
        aggregate.fold(TensorReader({"w": torch.full((ELEMENTS,), values, dtype=torch.float64)}), 5, client=client)
    np.testing.assert_allclose(np.linalg.norm(aggregate.result()["w"].numpy()), 1 / 2)


def test_which_parameters_clients_touched_is_not_told() -> None:
    aggregate = PrivateMean(LAYOUT, None, 1.0, 1.0, zeros)
    aggregate.fold(TensorReader({"w": zeros(ELEMENTS)}, untouched_metadata(["w"])), 1)
    assert aggregate.untouched == frozenset()


def test_a_private_recipe_gets_no_mean_without_noise() -> None:
    recipe = Recipe(rounds=1, dp_clip=1.0, dp_noise_multiplier=1.0)
    with pytest.raises(ValueError, match="needs noise"):
        aggregate_of(recipe, LAYOUT)
    assert isinstance(aggregate_of(recipe, LAYOUT, ones), PrivateMean)
