"""Data sets that can only be read from their beginning, endless ones too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from protocol.tasks import Shard, Split
from tests.farm_client.executor.bench_task import Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

ENDLESS = """
    import itertools
    import torch
    from torch import nn
    from torch.utils.data import IterableDataset

    class Points(IterableDataset):
        def __iter__(self):
            for number in itertools.count():
                x = torch.randn(3)
                yield {"number": number, "x": x, "y": x.sum()}

    def build_model(config):
        torch.manual_seed(5)
        return nn.Linear(3, 1)

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def make_dataset(config):
        return Points()

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"])
"""
SHARDS = [
    Shard(index=0, samples=20, start=0),
    Shard(index=1, samples=12, start=20),
    Shard(index=2, samples=8, start=32, split=Split.HOLDOUT),
]


def numbers(bench: Bench, epoch: int = 0) -> list[int]:
    batches = bench.runner._source.batches(bench.run_order().pieces, epoch)
    return [int(number) for batch in batches for number in batch["number"]]


def test_every_row_of_an_endless_stream_comes_once_in_an_epoch(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ENDLESS, shards=SHARDS)
    assert sorted(numbers(bench)) == [*range(32)]
    assert numbers(bench) != numbers(bench, epoch=1)
    [held_out] = bench.runner._source.batches(bench.pieces(Split.HOLDOUT), 0)
    assert sorted(held_out["number"].tolist()) == [*range(32, 40)]
    assert bench.evaluate().metrics["loss"] > 0


def test_a_stream_trains_as_the_plain_loop_over_the_same_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ENDLESS, shards=SHARDS)
    model = bench.runner.contract.build_model()
    [optimizer] = bench.runner.contract.build_optimizer(model)
    for batch in bench.runner._source.batches(bench.run_order().pieces, 0):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"]).backward()
        optimizer.step()
    expected = bench.whole()["weight"] - model.weight.detach()
    assert torch.equal(update_of(bench.train())["weight"], expected)


def test_a_row_is_the_same_whoever_reads_it_and_after_whatever(tmp_path: Path) -> None:
    first = Bench(tmp_path / "one", ENDLESS, shards=SHARDS)
    second = Bench(tmp_path / "two", ENDLESS, shards=SHARDS)
    torch.randn(7)
    late, early = slice(1, 2), slice(0, 1)
    order = first.pieces(Split.TRAIN, late)
    [alone, *_] = first.runner._source.batches(order, 0)
    _ = [*second.runner._source.batches(second.pieces(Split.TRAIN, early), 0)]
    [afterwards, *_] = second.runner._source.batches(order, 0)
    assert torch.equal(alone["x"], afterwards["x"])


def test_its_length_must_be_said(tmp_path: Path) -> None:
    told = complaint(rehearsed(tmp_path, ENDLESS, sample_path=None, sample_rows=0))
    assert "a stream (Points), whose length nobody knows: write samples = N into [task]" in told
    assert complaint(rehearsed(tmp_path / "said", ENDLESS, sample_path=None, sample_rows=0, rows=40)) == ""


STREAMS = {
    "too short": ("itertools.count()", "range(25)", "ended before item 25, .* at least 32: lower it"),
    "raises": ("torch.randn(3)", "torch.randn(number - 9)", "in __iter__: RuntimeError"),
    "once only": ("Points()", "iter(Points())", "or an iterable one that can be read again; it returned generator"),
}


@pytest.mark.parametrize("case", list(STREAMS))
def test_mistakes_are_told(tmp_path: Path, case: str) -> None:
    old, new, sentence = STREAMS[case]
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, ENDLESS.replace(old, new), shards=SHARDS).train()
