"""Shards: balanced, mixed, reproducible, every row in exactly one, whatever the block size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.data import sharding
from farm_client.data.columns import DataError
from farm_client.data.readers import open_data
from farm_client.data.sharding import plan_shards, write_sample, write_shards
from farm_client.data.shards import read_shard
from protocol.digests import digest_bytes
from protocol.tasks import Dataset, Shard, Split


@given(rows=st.integers(2, 5000), row_bytes=st.integers(1, 100_000), holdout=st.floats(0, 0.9))
def test_plans_are_balanced(rows: int, row_bytes: int, holdout: float) -> None:
    try:
        plan = plan_shards(rows, rows * row_bytes, holdout)
    except DataError:
        assert round(rows * holdout) >= rows - 1 or rows * (1 - holdout) <= 1.5
        return
    train = [p.samples for p in plan if p.split is Split.TRAIN]
    kept = [p.samples for p in plan if p.split is Split.HOLDOUT]
    assert sum(train) + sum(kept) == rows
    assert bool(kept) == (holdout > 0)
    assert abs(sum(kept) - rows * holdout) <= 1
    for sizes in (train, kept):
        assert not sizes or max(sizes) - min(sizes) <= 1
    assert len(train) >= min(16, sum(train))
    assert len(train) <= sharding.MAX_SHARDS


def test_large_data_gets_shards_of_four_mebibytes() -> None:
    plan = plan_shards(100_000, 400 << 20, 0.0)
    assert len(plan) == 100
    assert len(plan_shards(10**6, 1 << 40, 0.0)) == sharding.MAX_SHARDS


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 3])
def test_a_holdout_out_of_range_is_refused(holdout: float) -> None:
    with pytest.raises(DataError, match="fraction"):
        plan_shards(10, 10, holdout)


def test_one_row_cannot_be_both_trained_on_and_held_out() -> None:
    with pytest.raises(DataError, match="none is left"):
        plan_shards(1, 8, 0.2)


def sorted_by_class(folder: Path, rows: int = 2000) -> Path:
    path = folder / "sorted.npz"
    labels = np.repeat(np.arange(4), rows // 4)
    words = np.array([f"row {i}" for i in range(rows)])
    np.savez(path, id=np.arange(rows), label=labels, word=words, x=np.ones((rows, 3), np.float32))
    return path


def shard_all(path: Path, folder: Path, seed: int, holdout: float = 0.2) -> tuple[list[Shard], dict[str, Path]]:
    folder.mkdir()
    source = open_data([path])
    return write_shards(source, plan_shards(source.rows, source.size_bytes, holdout), folder, seed)


@pytest.mark.parametrize("block_bytes", [1 << 10, 1 << 25])
def test_rows_sorted_by_class_give_mixed_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(sharding, "BLOCK_BYTES", block_bytes)
    shards, files = shard_all(sorted_by_class(tmp_path), tmp_path / "out", seed=3)
    seen: list[int] = []
    for shard in Dataset(kind="files", shards=tuple(shards)).shards:
        assert shard.blob is not None
        path = files[shard.blob.digest]
        assert digest_bytes(path.read_bytes()) == shard.blob.digest
        rows = read_shard(path)
        batch = rows.take(torch.arange(rows.samples))
        assert rows.samples == shard.samples
        assert batch["word"] == [f"row {i}" for i in batch["id"].tolist()]
        counts = torch.bincount(batch["label"], minlength=4) / rows.samples
        assert counts.max() < 0.45
        seen += batch["id"].tolist()
    assert sorted(seen) == list(range(2000))
    assert not list((tmp_path / "out").glob("spill-*"))


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    path = sorted_by_class(tmp_path)
    first, again, other = (shard_all(path, tmp_path / name, seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_rows_shuffled_by_numpy_with_the_same_seed_are_not_put_back_in_order(tmp_path: Path, seed: int) -> None:
    rows = 2000
    shuffled = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), rows // 4))
    np.savez(tmp_path / "shuffled.npz", label=shuffled)
    shards, files = shard_all(tmp_path / "shuffled.npz", tmp_path / "out", seed, holdout=0.25)
    for shard in shards:
        assert shard.blob is not None
        labels = read_shard(files[shard.blob.digest]).take(torch.arange(shard.samples))["label"]
        assert torch.bincount(labels, minlength=4).max() < 0.45 * shard.samples


def test_progress_counts_to_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 4096)
    source = open_data([sorted_by_class(tmp_path)])
    told: list[tuple[int, int]] = []
    write_shards(source, plan_shards(source.rows, source.size_bytes, 0), tmp_path, 0, lambda *n: told.append(n))
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == (2000, 2000)


def test_a_sample_is_the_first_rows(tmp_path: Path) -> None:
    source = open_data([sorted_by_class(tmp_path)])
    assert write_sample(source, 5, tmp_path / "sample") == 5
    assert read_shard(tmp_path / "sample").take(torch.arange(5))["id"].tolist() == [0, 1, 2, 3, 4]


def test_memory_is_bounded_by_the_block_and_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "large.npz"
    np.savez(path, x=np.ones((8192, 256), np.float32))
    source = open_data([path])
    assert source.size_bytes == 8 << 20
    tracemalloc.start()
    write_shards(source, plan_shards(source.rows, source.size_bytes, 0), tmp_path, 0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3 << 20  # a shard is half a MiB
