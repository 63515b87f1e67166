"""The judge of the fault measurements finds what is wrong, and lets pass what is right."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.regression import relative_difference, unbalanced
from protocol.rest import ShardBook


def book(epoch: int, counted: int, repeated: int = 0) -> ShardBook:
    return ShardBook(epoch=epoch, shard=0, samples=10, counted_samples=counted, repeated_samples=repeated)


def test_whole_epochs_and_a_begun_one_balance() -> None:
    assert unbalanced([book(0, 10), book(1, 10), book(2, 4)], 24) == []


@pytest.mark.parametrize(
    ("books", "said"),
    [
        ([book(0, 9), book(1, 10)], "epoch 0, shard 0: 9 of 10 samples counted"),
        ([book(0, 10, repeated=1), book(1, 10)], "epoch 0, shard 0: 1 samples counted again"),
        ([book(0, 10), book(1, 9)], "19 samples counted in all instead of 20"),
        ([], "0 samples counted in all instead of 20"),
    ],
)
def test_a_lost_or_repeated_sample_is_told(books: list[ShardBook], said: str) -> None:
    assert said in unbalanced(books, 20)


def test_the_difference_is_relative_to_each_tensor() -> None:
    expected = {"large": np.array([3e6, 4e6]), "small": np.array([1e-3])}
    assert relative_difference(expected, expected) == 0
    changed = {**expected, "small": np.array([1.001e-3])}
    assert relative_difference(changed, expected) == pytest.approx(1e-3)


def test_a_missing_tensor_is_no_match() -> None:
    with pytest.raises(KeyError):
        relative_difference({}, {"w": np.ones(1)})


def test_a_number_that_is_none_is_no_match() -> None:
    expected = {"a": np.ones(1), "b": np.ones(1)}
    for name in expected:
        assert not relative_difference({**expected, name: np.array([np.nan])}, expected) <= 1e-9
