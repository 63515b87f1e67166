"""Shards stay in memory within a bound, whatever they hold; reading one does not change the numbers of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.executor import samples
from farm_client.executor.failures import MissingFile, as_failed
from farm_client.executor.shard_cache import ShardCache
from protocol.messages import Scope
from protocol.recipe import Mode
from protocol.tasks import Shard
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of

ROWS = 50
SHARDS = [Shard(index=i, samples=ROWS, start=i * ROWS) for i in range(12)]
MODEL = """
    import torch
    import numpy as np
    from torch import nn

    def build_model(config):
        return nn.Linear(3, 2)

    def loss(model, batch):
        return model(batch[0].float()[:, :3] if isinstance(batch, (list, tuple)) else batch["x"][:, :3]).square().mean()

    loaded = []
    WHOLE = torch.ones(ROWS * 12, 2000)

    class Lazy(torch.utils.data.Dataset):
        def __init__(self, samples):
            self.samples, self.kept = samples, {}

        def __len__(self):
            return self.samples

        def __getitem__(self, i):
            self.kept[i] = torch.ones(2000)
            return (self.kept[i],)

    def load_shard(shard):
        loaded.append(shard.index)
        return BODY
""".replace("ROWS", str(ROWS))
OF_400_KB = {
    "tensors": "torch.utils.data.TensorDataset(torch.ones(shard.samples, 2000))",
    "columns": '{"x": torch.ones(shard.samples, 2000)}',
    "a list of tuples": "[(torch.ones(2000),) for _ in range(shard.samples)]",
    "a list of arrays in dicts": '[{"x": np.ones(2000, np.float32)} for _ in range(shard.samples)]',
    "items kept as they are read": "Lazy(shard.samples)",
}


@pytest.mark.parametrize("kind", list(OF_400_KB))
def test_no_more_is_kept_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(samples, "KEPT_SHARDS_BYTES", 1_700_000)
    bench = Bench(tmp_path, MODEL.replace("BODY", OF_400_KB[kind]), shards=SHARDS)
    for _ in range(2):
        assert bench.train().samples == ROWS * len(SHARDS)
        bench.train(slice(0, 1))
        assert len(bench.runner._source._shards) <= 5


def test_what_fits_is_read_once_and_what_is_shared_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT_SHARDS_BYTES", 6_000_000)  # the whole is 4.8 MB
    body = (
        "torch.utils.data.Subset(torch.utils.data.TensorDataset(WHOLE), range(shard.first_row, shard.first_row + 50))"
    )
    bench = Bench(tmp_path, MODEL.replace("BODY", body), shards=SHARDS)
    for _ in range(3):
        bench.train()
    assert bench.runner.contract.module.loaded == list(range(12))


def test_text_columns_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT_SHARDS_BYTES", 1_000_000)
    texts = np.array([f"{i:05d}" + "x" * 4000 for i in range(1600)])
    source = LINEAR.replace('nn.functional.cross_entropy(model(batch["x"]), batch["y"])', "check(model, batch)") + (
        """
    def check(model, batch):
        seen.extend(int(text[:5]) for text in batch["t"])
        assert all(len(text) == 4005 for text in batch["t"])
        return model(torch.ones(1, 3)).mean()

    seen = []
    """
    )
    bench = Bench(tmp_path, source, arrays={"t": texts})
    trained = bench.train()
    assert len(bench.runner._source._shards) < 5
    assert len(set(bench.runner.contract.module.seen)) == trained.samples


DRAWS = (
    LINEAR.replace('model(batch["x"])', 'model(batch["x"] + torch.rand(1) + np.random.rand() + random.random())')
    + """
    import random
    import numpy as np

    def load_shard(shard):
        from safetensors.torch import load_file
        np.random.rand(3), random.random(), torch.rand(5)
        return load_file(shard.path)
"""
)


@pytest.mark.parametrize("mode", list(Mode))
def test_whether_a_shard_was_kept_does_not_change_the_update(tmp_path: Path, mode: Mode) -> None:
    bench = Bench(tmp_path, DRAWS, mode=mode)
    first, again = update_of(bench.train()), update_of(bench.train())
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_shard_that_is_gone_is_fetched_again_even_inside_the_researchers_code(tmp_path: Path) -> None:
    source = LINEAR + "\n    def evaluate(model, data):\n        return {'rows': float(sum(1 for _ in data))}\n"
    bench = Bench(tmp_path, source)
    for path in bench.files.values():
        path.unlink()
    for work in (bench.train, bench.evaluate):
        with pytest.raises(MissingFile) as gone:
            work()
        failed = as_failed(gone.value, "a")
        assert (failed.code, failed.scope) == ("missing_file", Scope.HERE)


def test_the_orders_of_shards_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT_ORDERS_BYTES", 3 * ROWS * 8)
    bench = Bench(tmp_path, MODEL.replace("BODY", OF_400_KB["columns"]), shards=SHARDS)
    first = update_of(bench.train())
    assert len(bench.runner._source._orders) == 3
    again = update_of(bench.train())
    assert all(torch.equal(first[name], again[name]) for name in first)


class OneBuffer:
    """Rows that hold these arrays, and grow."""

    grows = True

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = list(arrays)

    def kept(self) -> object:
        return self.arrays


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from(["put", "get", "grow"]), st.integers(0, 3)),
        min_size=1,
        max_size=40,
    )
)
def test_the_books_of_what_is_kept_add_up(steps: list[tuple[int, str, int]]) -> None:
    """The running total is that of a fresh count over all that is kept, whatever is put, read, grown and let go."""
    limit = 400_000
    cache = ShardCache(lambda: limit)
    shared = [np.zeros(70_000 + i, np.uint8) for i in range(4)]
    for shard, what, buffer in steps:
        kept = cache.get(shard) if what != "put" else None
        if what == "put":
            cache.put(shard, OneBuffer(shared[buffer], np.zeros(1000, np.uint8)))  # type: ignore[arg-type]
        elif kept is not None and what == "grow":
            kept.arrays += [shared[buffer], np.zeros(66_000, np.uint8)]  # type: ignore[attr-defined]
        cache.trim()
        fresh = ShardCache(lambda: 10**12)
        for number, rows in cache._rows.items():
            fresh.put(number, rows)
        assert cache._total_bytes == fresh._total_bytes
        assert cache._total_bytes <= limit or len(cache) == 1
