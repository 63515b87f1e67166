"""collate_fn makes the batches of a data set's items."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farm_client.executor.failures import CodeError
from protocol.tasks import Shard, Split
from tests.farm_client.executor.bench_task import Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

RAGGED = """
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pad_sequence

    def build_model(config):
        torch.manual_seed(3)
        return nn.Embedding(9, 1, padding_idx=0)

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def make_dataset(config):
        return [(torch.full((1 + i % 3,), 1 + i % 8), i % 2) for i in range(24)]

    def collate_fn(items):
        words, labels = zip(*items)
        return pad_sequence(words, batch_first=True), torch.tensor(labels)

    def loss(model, batch):
        words, labels = batch
        return ((model(words).squeeze(-1).sum(1) - labels) ** 2).mean()
"""
SHARDS = [Shard(index=0, split=Split.TRAIN, start=0, samples=24)]


def test_the_batches_are_the_codes_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAGGED, shards=SHARDS)
    model = bench.runner.contract.build_model()
    [optimizer] = bench.runner.contract.build_optimizer(model)
    order = [
        item for batch in bench.runner._source.batches(bench.run_order().pieces, 0) for item in zip(*batch, strict=True)
    ]
    dataset = bench.runner.contract.module.make_dataset({})
    assert sorted((int(words.max()), int(label)) for words, label in order) == sorted(
        (int(words[0]), label) for words, label in dataset
    )
    for batch in bench.runner._source.batches(bench.run_order().pieces, 0):
        optimizer.zero_grad()
        bench.runner.contract.module.loss(model, batch).backward()
        optimizer.step()
    expected = bench.whole()["weight"] - model.weight.detach()
    assert torch.equal(update_of(bench.train())["weight"], expected)


def test_an_error_in_it_is_the_codes(tmp_path: Path) -> None:
    broken = RAGGED.replace("torch.tensor(labels)", "torch.tensor(label)")
    with pytest.raises(CodeError, match="in collate_fn: NameError: name 'label' is not defined"):
        Bench(tmp_path, broken, shards=SHARDS).train()


def test_it_is_no_function_that_the_farm_does_not_know(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, RAGGED, sample_path=None, sample_rows=0)
    assert (complaint(report), report.notes) == ("", ())
