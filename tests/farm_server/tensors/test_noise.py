from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from farm_server.tensors.noise import fresh_gaussian
from protocol.recipe import Recipe
from tests.farm_server import model
from tests.farm_server.tensors.aggregator_bench import Bench


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.aggregator.close()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_there_is_as_much_as_is_asked_for(count):
    assert fresh_gaussian(count).shape == (count,)
    assert fresh_gaussian(count).dtype == torch.float64


def test_it_is_standard_normal_and_independent():
    """By Kolmogorov and Smirnov; of true noise this fails once in 10^9 runs."""
    drawn = fresh_gaussian(100_001).numpy()
    ranks = (np.arange(drawn.size) + 0.5) / drawn.size
    expected = np.array([NormalDist().cdf(value) for value in np.sort(drawn)])
    assert np.abs(expected - ranks).max() < 3.3 / np.sqrt(drawn.size)
    assert abs(np.corrcoef(drawn[:50_000], drawn[50_000:100_000])[0, 1]) < 0.03


def test_no_seed_brings_it_back():
    torch.manual_seed(1)
    first = fresh_gaussian(100)
    torch.manual_seed(1)
    assert not torch.equal(first, fresh_gaussian(100))


def test_a_private_round_adds_noise_of_the_recipes_size(bench):
    recipe = Recipe(rounds=3, dp_clip=1e-6, dp_noise_multiplier=1000.0, outer={"options": {"lr": 1.0}})
    weights = []
    for _ in range(2):
        bench.start_from(model.weights(), recipe)
        bench.open()
        for value in (1.0, 2.0):
            bench.fold(model.update(value))
        bench.commit()
        weights.append(model.values(bench.weights[-1]).ravel())
    assert not np.array_equal(*weights)  # the same updates, and other noise
    assert 1e-5 < np.abs(np.concatenate(weights)).max() < 1e-2  # 1e-6 * 1000 / 2 clients
