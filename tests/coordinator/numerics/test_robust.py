from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.numerics.aggregation import EmptyRound
from coordinator.numerics.robust import median, robust_mean, sorting_network, trimmed_mean
from protocol.codecs import BytesReader, decoder, encode
from protocol.compression import CodecName, CodecSpec
from protocol.tensors import Layout, Role, TensorSpec


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


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_change_a_bit(count: int, trim: int, rng: object) -> None:
    rows, trim = list(rows_of(count, 50)), min(trim, (count - 1) // 2)
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    first, second = torch.empty(50), torch.empty(50)
    trimmed_mean(rows, first, trim)
    trimmed_mean(shuffled, second, trim)
    assert torch.equal(first, second)


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


LAYOUT = Layout(
    (
        TensorSpec("flag", "BOOL", (2,), Role.BUFFER),
        TensorSpec("frozen", "F32", (4,), Role.FROZEN),
        TensorSpec("steps", "I64", (), Role.BUFFER),
        TensorSpec("w", "F32", (90, 70)),
        TensorSpec("wide", "F64", (3,), Role.BUFFER),
    )
)


def updates_of(codec: CodecSpec, count: int) -> list[BytesReader]:
    updates = []
    for seed in range(count):
        tensors = {
            "flag": torch.tensor([seed % 2 == 0, True]),
            "steps": torch.tensor(seed * seed),
            "w": rows_of(1, 6300, seed).view(90, 70),
            "wide": torch.full((3,), float(seed), dtype=torch.float64),
        }
        updates.append(BytesReader(safetensors.torch.save(*encode(tensors, LAYOUT, codec, None))))
    return updates


@pytest.mark.parametrize("name", CodecName)
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.3, 0.5])
def test_whole_updates_in_any_codec(name: CodecName, fraction: float) -> None:
    codec = CodecSpec(name=name, density=0.1, block=64)
    readers = updates_of(codec, 6)
    mean = robust_mean(readers, LAYOUT, codec, fraction)
    assert mean.keys() == {"flag", "steps", "w", "wide"}
    w = next(spec for spec in LAYOUT.tensors if spec.name == "w")
    rows = torch.stack([decoder(reader, w, codec).decode() for reader in readers])
    trim = min(2, math.floor(fraction * 6))
    torch.testing.assert_close(mean["w"].double(), expected(rows, trim), rtol=1e-5, atol=1e-5)
    assert mean["wide"].tolist() == [2.5] * 3
    assert mean["steps"].item() == 4
    assert mean["flag"].tolist() == [False, True]


def test_outliers_do_not_move_the_median() -> None:
    rows = rows_of(9, 500)
    honest = torch.empty(500)
    median(list(rows[:5]), honest)
    hostile = torch.cat([rows[:5], torch.full((4, 500), 1e30)])
    moved = torch.empty(500)
    median(list(hostile), moved)
    assert (moved <= rows[:5].max(dim=0).values).all()


def test_no_update_has_no_mean() -> None:
    with pytest.raises(EmptyRound):
        robust_mean([], LAYOUT, CodecSpec(), 0.1)
