from __future__ import annotations

import itertools
import math
import random
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.numerics.aggregate import Aggregate
from coordinator.numerics.robust import Median, TrimmedMean, median, sorting_network, trimmed_mean
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import TensorReader
from protocol.tensors import Layout, TensorSpec


def rows_of(count: int, elements: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, elements, generator=generator, dtype=torch.float64).mul_(4)
    values[:, ::3].round_()  # so that there are ties
    return values.to(dtype)


def expected(rows: Tensor, trim: int) -> Tensor:
    """The definition, by torch.sort in float64."""
    return rows.double().sort(dim=0).values[trim : len(rows) - trim].mean(dim=0)


@pytest.mark.parametrize("rows", range(1, 9))
def test_the_network_sorts_every_row_of_zeros_and_ones(rows: int) -> None:
    """Which is enough for every input (Knuth's zero-one principle)."""
    inputs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=rows))).T.contiguous()
    values = list(inputs.unbind())
    for low, high, wants_low, wants_high in sorting_network(rows):
        assert wants_low
        assert wants_high
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
    assert torch.equal(torch.stack(values), inputs.sort(dim=0).values)


@pytest.mark.parametrize(("rows", "comparisons"), [(1, 0), (2, 1), (4, 5), (8, 19), (16, 63), (64, 543)])
def test_the_network_is_batchers(rows: int, comparisons: int) -> None:
    assert len(sorting_network(rows)) == comparisons
    assert rows < 8 or len(sorting_network(rows, (rows - 1) // 2)) < comparisons


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 64), st.integers(0, 40), st.integers(0, 31), st.integers(0, 99))
def test_the_trimmed_mean_is_its_definition(count: int, elements: int, trim: int, seed: int) -> None:
    rows, trim = rows_of(count, elements, seed), min(trim, (count - 1) // 2)
    out = torch.empty(elements)
    trimmed_mean(list(rows), out, trim)
    torch.testing.assert_close(out.double(), expected(rows, trim), rtol=1e-6, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 64), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle(
    count: int, dtype: torch.dtype, seed: int
) -> None:
    rows = rows_of(count, 30, seed, dtype)
    out = torch.empty(30, dtype=dtype)
    median(list(rows), out)
    ranked = rows.sort(dim=0).values
    assert torch.equal(out, (ranked[(count - 1) // 2] + ranked[count // 2]) / 2)


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_change_a_bit(count: int, trim: int, rng: random.Random) -> None:
    rows, trim = list(rows_of(count, 50)), min(trim, (count - 1) // 2)
    for row in rows:  # zeros of either sign are equal, and are not the same bits
        row[:10] = torch.tensor([rng.choice([-1.0, -0.0, 0.0, 1.0]) for _ in range(10)])
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    first, second = torch.empty(50), torch.empty(50)
    trimmed_mean(rows, first, trim)
    trimmed_mean(shuffled, second, trim)
    assert bits(first) == bits(second)


def test_blocks_leave_no_seam() -> None:
    rows = rows_of(5, 200_003)
    out = torch.empty(200_003)
    median(list(rows), out)
    assert torch.equal(out, rows.sort(dim=0).values[2])


def test_rows_may_be_memory_maps_and_stay_as_they_are(tmp_path: Path) -> None:
    rows = rows_of(3, 1000)
    rows.numpy().tofile(tmp_path / "rows")
    mapped = torch.from_numpy(np.memmap(tmp_path / "rows", np.float32, mode="r+", shape=(3, 1000)))
    out = torch.empty(1000)
    median(list(mapped), out)
    assert torch.equal(out, rows.sort(dim=0).values[1])
    assert torch.equal(mapped, rows)


@pytest.mark.parametrize(("count", "trim"), [(0, 0), (1, 1), (4, 2), (5, 3), (3, -1)])
def test_something_must_be_left(count: int, trim: int) -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        trimmed_mean(list(rows_of(count, 3)), torch.empty(3), trim)


ONE: Final = Layout((TensorSpec("w", "F32", (20,)),))
LIES: Final = st.sampled_from([-3e34, 3e34, 0.0, -0.0, 1e-30, -7.0, 7.0])


def aggregated(aggregate: Aggregate, rows: list[Tensor], samples: int = 1) -> Tensor:
    for row in rows:
        aggregate.fold(TensorReader({"w": row}), samples)
    return aggregate.result()["w"]


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 21), st.floats(0.01, 0.5, exclude_max=True), st.data())
def test_so_many_liars_cannot_move_it_beyond_what_honest_updates_say(
    count: int, trim_share: float, data: st.DataObject
) -> None:
    most = min(math.ceil(trim_share * count), (count - 1) // 2)
    liars = data.draw(st.integers(0, most))
    honest = list(rows_of(count - liars, 20, seed=count))
    lies = [torch.tensor(data.draw(st.lists(LIES, min_size=20, max_size=20))) for _ in range(liars)]
    rows = data.draw(st.permutations(honest + lies))
    moved = aggregated(TrimmedMean(ONE, None, trim_share), rows)
    low, high = torch.stack(honest).aminmax(dim=0)
    assert ((low <= moved) & (moved <= high)).all()


@given(st.lists(LIES, min_size=20, max_size=20), st.integers(0, 2))
def test_one_liar_of_three_cannot_move_the_median_and_moves_the_mean(lie: list[float], place: int) -> None:
    honest = list(rows_of(2, 20))
    low, high = torch.stack(honest).aminmax(dim=0)
    rows = [*honest[:place], torch.tensor(lie), *honest[place:]]
    median_of_three = aggregated(Median(ONE), rows)
    assert ((low <= median_of_three) & (median_of_three <= high)).all()
    rows[place] = torch.full((20,), 3e34)
    assert (aggregated(WeightedMean(ONE), rows) > 1e34).all()
    assert (aggregated(Median(ONE), rows) == high).all()


@given(st.permutations(range(7)), st.lists(st.integers(1, 5000), min_size=7, max_size=7))
def test_every_update_has_one_vote_whatever_its_samples_and_its_place(order: list[int], samples: list[int]) -> None:
    rows = list(rows_of(7, 20))
    for make in (Median, partial(TrimmedMean, trim_share=0.2)):
        weighed = make(ONE, None)
        for place in order:
            weighed.fold(TensorReader({"w": rows[place]}), samples[place])
        assert bits(weighed.result()["w"]) == bits(aggregated(make(ONE, None), rows))


def test_a_vote_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match="one vote"):
        Median(ONE).fold(TensorReader({"w": torch.ones(20)}), 5, 0.5)


@pytest.mark.parametrize(
    ("trim_share", "count", "trimmed"),
    [(0.1, 3, 1), (0.1, 10, 1), (0.1, 11, 2), (0.07, 100, 7), (0.4, 3, 1), (0.49, 6, 2), (0.1, 2, 0), (0.3, 1, 0)],
)
def test_the_share_is_rounded_up_and_leaves_somebody(trim_share: float, count: int, trimmed: int) -> None:
    rows = [torch.full((20,), float(value**2)) for value in range(count)]
    kept = [value**2 for value in range(count)][trimmed : count - trimmed]
    found = aggregated(TrimmedMean(ONE, None, trim_share), rows)
    torch.testing.assert_close(found, torch.full((20,), sum(kept) / len(kept)))


def test_outliers_do_not_move_the_median() -> None:
    rows = rows_of(9, 500)
    honest = torch.empty(500)
    median(list(rows[:5]), honest)
    hostile = torch.cat([rows[:5], torch.full((4, 500), 1e30)])
    moved = torch.empty(500)
    median(list(hostile), moved)
    assert (moved <= rows[:5].max(dim=0).values).all()
