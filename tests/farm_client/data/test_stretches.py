"""Rows in order: laid out as contiguous streams side by side, each row once, and read as the plain loop reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farm_client.data import sharding, stretches
from farm_client.data.columns import DataError
from farm_client.data.order import order_of_streams
from farm_client.data.readers import open_data
from farm_client.data.sharding import PlannedShard, write_shards
from farm_client.data.shards import read_shard
from farm_client.data.stretches import Stretches
from protocol.contradictions import contradiction
from protocol.recipe import Recipe
from protocol.tasks import Dataset, Split


def batchify(rows: NDArray[np.int64], streams: int) -> NDArray[np.int64]:
    """As PyTorch's word_language_model does it: [batches, streams], each column contiguous."""
    length = len(rows) // streams
    return rows[: length * streams].reshape(streams, length).T


@st.composite
def layouts(draw: st.DrawFn) -> Stretches:
    streams, count = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    rows = draw(st.integers(streams * count, 400))
    holdout = draw(st.sampled_from([0.0, 0.0, 0.2, 0.5]))
    row_bytes = draw(st.sampled_from([1, 1 << 20, 3 << 20]))
    try:
        return Stretches.of(rows, rows * row_bytes, holdout, streams=streams, stretches=count)
    except DataError:
        return Stretches.of(rows, rows * row_bytes, 0.0, streams=streams, stretches=count)


def rows_of(shard: PlannedShard, streams: int) -> NDArray[np.int64]:
    """The data's rows in a shard's file, as the shard says it."""
    length = shard.samples // streams
    return np.concatenate([shard.start + stream * shard.stride + np.arange(length) for stream in range(streams)])


def read_in_order(shards: list[PlannedShard], streams: int) -> NDArray[np.int64]:
    """The rows of some shards as an executor reads them: [batches, streams]."""
    order = order_of_streams
    read = [rows_of(shard, streams)[order(shard.samples, streams).numpy()] for shard in shards]
    return np.concatenate(read).reshape(-1, streams)


@given(layouts())
def test_each_stretch_is_read_as_the_plain_loop_reads_it(laid_out: Stretches) -> None:
    shards = laid_out.shards()
    train = [shard for shard in shards if shard.split is Split.TRAIN]
    whole = laid_out.streams * laid_out.train_rows
    for number in range(laid_out.stretches):
        expected = batchify(np.arange(number * whole, (number + 1) * whole), laid_out.streams)
        read = read_in_order(train[number :: laid_out.stretches], laid_out.streams)
        np.testing.assert_array_equal(read, expected)
    held = [shard for shard in shards if shard.split is Split.HOLDOUT]
    if held:
        expected = batchify(np.arange(laid_out.first_held, laid_out.rows), laid_out.streams)
        np.testing.assert_array_equal(read_in_order(held, laid_out.streams), expected)


@given(layouts(), st.integers(1, 50))
def test_each_row_is_in_one_shard_or_left_out_whatever_the_blocks(laid_out: Stretches, block: int) -> None:
    shards = laid_out.shards()
    dealt = np.concatenate(
        [laid_out.shard_of(first, min(block, laid_out.rows - first)) for first in range(0, laid_out.rows, block)]
    )
    for index, shard in enumerate(shards):
        np.testing.assert_array_equal(np.flatnonzero(dealt == index), rows_of(shard, laid_out.streams))
    assert laid_out.left_out == np.count_nonzero(dealt == len(shards))
    assert laid_out.left_out < laid_out.streams * (laid_out.stretches + 1)


@given(layouts())
def test_what_is_laid_out_for_a_recipe_does_not_contradict_it(laid_out: Stretches) -> None:
    dataset = Dataset(kind="code", shards=tuple(s.shard(i) for i, s in enumerate(laid_out.shards())))
    step = laid_out.streams * laid_out.stretches
    numbers = {"round_samples": 2 * step, "batch_samples": laid_out.streams, "min_clients": laid_out.stretches}
    assert contradiction(Recipe(rounds=1, order="sequential", **numbers), dataset) is None
    said = contradiction(Recipe(rounds=1, **numbers), dataset)
    assert said == 'the data was laid out to be read in order: add order = "sequential"'


@pytest.mark.parametrize("streams", [1, 3])
def test_files_have_the_rows_of_their_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 100)
    monkeypatch.setattr(stretches, "SHARD_BYTES", 200)
    words = np.array([f"row {i}" for i in range(101)])
    np.savez(tmp_path / "rows.npz", id=np.arange(101), word=words)
    source = open_data([tmp_path / "rows.npz"])
    laid_out = Stretches.of(source.rows, source.size_bytes, 0.2, streams=streams, stretches=2)
    assert laid_out.parts > 1
    shards, files = write_shards(source, laid_out.shards(), tmp_path, 0, shard_of=laid_out.shard_of)
    assert [shard.split for shard in shards].count(Split.HOLDOUT) == laid_out.held_parts
    for index, (shard, planned) in enumerate(zip(shards, laid_out.shards(), strict=True)):
        assert shard.blob is not None
        assert shard == planned.shard(index, shard.blob)
        rows = read_shard(files[shard.blob.digest]).take(torch.arange(shard.samples))
        assert rows["id"].tolist() == rows_of(planned, streams).tolist()
        assert rows["word"] == [f"row {i}" for i in rows["id"].tolist()]


@pytest.mark.parametrize(
    ("rows", "holdout", "said"),
    [
        (7, 0.0, "there are 7 rows to train on, and 8 streams are read side by side: lower batch_samples"),
        (20, 0.15, "there are 3 rows held out, and 4 streams are read side by side: lower batch_samples"),
        (20, 1.0, "fraction"),
        (1, 0.5, "none is left"),
    ],
)
def test_too_few_rows_are_refused_in_words(rows: int, holdout: float, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Stretches.of(rows, rows, holdout, streams=4, stretches=2)


def test_a_stretch_is_cut_in_shards_of_the_usual_size() -> None:
    laid_out = Stretches.of(100_000, 400 << 20, 0.0, streams=10, stretches=2)
    assert len(laid_out.shards()) == 100
    assert len(Stretches.of(10**6, 1 << 40, 0.0, streams=1, stretches=3).shards()) <= sharding.MAX_SHARDS
