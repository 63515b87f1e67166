"""A batch that does not fit the memory is taken in parts, with the gradient of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from farm_client.executor.gradient import _parted
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import Bench, update_of

SMALL = """
    import torch
    from torch import nn

    calls = []

    def build_model(config):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if config.get("norm") else []), nn.Linear(4, 2))

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss(model, batch):
        calls.append(len(batch["y"]))
        scores = model(batch["x"])
        if len(scores) > MOST and torch.is_grad_enabled():
            raise ERROR
        return {"loss": nn.functional.cross_entropy(scores, batch["y"]), "rows": float(len(scores))}
"""
ERRORS = ("torch.cuda.OutOfMemoryError('full')", "MemoryError()", "RuntimeError('DefaultCPUAllocator: not enough')")


def short_of_memory(folder: Path, most: int, error: str = ERRORS[0], **changes: Any) -> Bench:
    return Bench(folder, SMALL.replace("MOST", str(most)).replace("ERROR", error), **changes)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path: Path, mode: Mode, error: str) -> None:
    whole = short_of_memory(tmp_path / "whole", 99, mode=mode)
    parted = short_of_memory(tmp_path / "parts", 3, error, mode=mode)
    first, second = whole.train(), parted.train()
    for name, value in update_of(first).items():
        torch.testing.assert_close(update_of(second)[name], value, rtol=1e-5, atol=1e-7)
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-6)
    assert second.metrics["rows"] == pytest.approx(2)  # a mean over samples, as every metric is


def test_a_part_is_exactly_the_plain_loops_accumulation(tmp_path: Path) -> None:
    bench = short_of_memory(tmp_path, 4)
    model = bench.runner.contract.build_model()
    model.load_state_dict(bench.whole())
    [optimizer] = bench.runner.contract.build_optimizer(model)
    for batch in bench.runner._source.batches(bench.run_order().pieces, 0):
        optimizer.zero_grad()
        for rows in (slice(0, 4), slice(4, 8)):
            scores = model(batch["x"][rows])
            (torch.nn.functional.cross_entropy(scores, batch["y"][rows]) * 0.5).backward()
        optimizer.step()
    update = update_of(bench.train())
    assert all(torch.equal(bench.whole()[name] - after, update[name]) for name, after in model.state_dict().items())


def test_what_fits_is_remembered_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = short_of_memory(tmp_path, 4)
    bench.train()
    assert bench.runner.contract.module.calls[:5] == [8, 4, 4, 4, 4]
    assert capsys.readouterr().err.count("too short for 8 samples at a time: 4 at a time from now on") == 1
    bench.runner.contract.module.calls.clear()
    bench.train()
    assert 8 not in bench.runner.contract.module.calls


def test_what_is_too_large_in_any_parts_fails_as_before(tmp_path: Path) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        short_of_memory(tmp_path, 0).train()


def test_batch_norm_keeps_two_samples_at_a_time(tmp_path: Path) -> None:
    assert short_of_memory(tmp_path / "two", 2, config={"norm": True}).train().samples == 72
    with pytest.raises(torch.cuda.OutOfMemoryError):
        short_of_memory(tmp_path / "one", 1, config={"norm": True}).train()


def test_every_kind_of_batch_is_parted_or_left_whole() -> None:
    pair = (torch.arange(4), [torch.ones(4, 2), None])
    (first, (ones, none)), _ = _parted(pair, [3, 1])
    assert (first.tolist(), ones.shape, none) == ([0, 1, 2], (3, 2), None)
    assert _parted({"t": ["a", "b", "c"]}, [2, 1]) == [{"t": ["a", "b"]}, {"t": ["c"]}]
    for stubborn in ({"x": torch.ones(3), "n": 3}, torch.ones(4), torch.tensor(3), object(), "abc"):
        assert _parted(stubborn, [2, 1]) == [stubborn]
