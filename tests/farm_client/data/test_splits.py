"""Splits of research: each row in one part, the same seed the same split, and the statistics of Dirichlet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.data.columns import DataError
from farm_client.data.splits import dealt_to_shards, dirichlet, iid


def labels_of(seed: int, rows: int, labels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, labels, rows)


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 20), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_each_row_is_in_one_part_and_parts_have_one_size(seed, rows, parts, labels, alpha):
    parts = min(parts, rows)
    for split in (
        lambda rng: iid(rows, parts, rng),
        lambda rng: dirichlet(labels_of(seed, rows, labels), parts, alpha, rng),
    ):
        found = split(np.random.default_rng(seed))
        sizes = np.bincount(found, minlength=parts)
        assert len(found) == rows
        assert (len(sizes), sizes.sum()) == (parts, rows)
        assert sizes.max() - sizes.min() <= 1
        assert np.array_equal(found, split(np.random.default_rng(seed)))


def test_another_seed_is_another_split():
    one, other = (iid(1000, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(one, other)


def shares_of(alpha: float, parts: int = 40, labels: int = 5) -> np.ndarray:
    """Return each part's shares of the labels ([parts, labels]); the data have as many of each, and many rows."""
    of_rows = np.repeat(np.arange(labels), 4000)
    found = dirichlet(of_rows, parts, alpha, np.random.default_rng(3))
    counts = np.zeros((parts, labels))
    np.add.at(counts, (found, of_rows), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def test_the_labels_shares_have_the_variance_of_dirichlet():
    # Var(q_k) = p_k (1 - p_k) / (alpha + 1) with p_k = 1/5, and a part's m rows are drawn by q: the rest over m on top
    m = 20_000 / 200
    for alpha in (1.0, 10.0, 100.0):
        of_dirichlet = 1 / (alpha + 1)
        expected = 0.2 * 0.8 * (of_dirichlet + (1 - of_dirichlet) / m)
        assert shares_of(alpha, parts=200).var() == pytest.approx(expected, rel=0.3)


def test_a_small_alpha_gives_each_part_few_labels_and_a_large_one_all_alike():
    assert np.median(shares_of(0.01).max(axis=1)) > 0.95
    assert np.median(np.abs(shares_of(1e4) - 0.2).max(axis=1)) < 0.06  # of the last ones little is left to choose from


def test_more_parts_than_rows_are_refused():
    with pytest.raises(DataError, match="each part needs a row"):
        iid(3, 4, np.random.default_rng(0))


def test_rows_go_to_the_shards_of_their_part():
    of_rows = np.array([0, 1, -1, 1, 0, 1, -1])
    found = dealt_to_shards(of_rows, [[2], [2, 1]], [2], np.random.default_rng(0))
    assert set(found[of_rows == 0]) == {0}
    assert sorted(found[of_rows == 1]) == [1, 1, 2]
    assert set(found[of_rows == -1]) == {3}
