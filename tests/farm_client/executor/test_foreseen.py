"""A client that does all of a round knows the farm's next version before it comes, to the bit; or fetches it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.foreseen import FileForm, foresee
from farm_client.executor.held_weights import HeldWeights
from farm_client.executor.layout import ModelTensors
from protocol.codecs import BytesReader
from protocol.digests import digest_bytes
from protocol.errors import NotFound
from protocol.recipe import OuterOptimizer
from protocol.tensors import parse_layout

TASK = cast("Any", SimpleNamespace(frozen_path=None, frozen_digest=None))
"""What of a task's load order says that nothing is frozen apart."""


class Net(nn.Module):
    """Float32 parameters, a float buffer, a counter and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def names_in(weights: bytes) -> tuple[str, ...]:
    return tuple(spec.name for spec in parse_layout(weights).tensors)


def updated(tensors: ModelTensors, seed: int) -> dict[str, torch.Tensor]:
    """Return some update: a difference of each parameter, each buffer's value after training."""
    draw = torch.Generator().manual_seed(seed)
    noise = {n: torch.randn(p.shape, generator=draw) * 1e-3 for n, p in tensors.parameters.items()}
    return noise | {n: b + 1 if b.dtype == torch.int64 else b * 1.5 for n, b in tensors.buffers.items()}


def made_by_the_farm(weights: bytes, update: dict[str, torch.Tensor], samples: int, lr: float = 1.0) -> dict[str, Any]:
    """Return the tensors that the server's own arithmetic makes of the version and one update."""
    layout = parse_layout(weights)
    tensors = safetensors.torch.load(weights)
    mean = WeightedMean(layout)
    mean.fold(BytesReader(safetensors.torch.save(update, {"format": "aifarm-update-1"})), samples)
    OuterStep(OuterOptimizer(options={"lr": lr}), tensors, layout).step(mean.result(), mean.untouched)
    return tensors


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 100_000), seed=st.integers(0, 1000))
def test_it_is_the_farms_version_to_the_bit(samples, seed):
    torch.manual_seed(seed)
    tensors = ModelTensors.of(Net())
    weights = tensors.weights_file()
    update = updated(tensors, seed)
    farms = made_by_the_farm(weights, update, samples)
    mine = foresee(safetensors.torch.load(weights), update, tensors.buffer_names, samples)
    assert mine.keys() == farms.keys()
    assert all(torch.equal(mine[name], farms[name]) and mine[name].dtype == farms[name].dtype for name in farms)


def test_the_digest_is_that_of_the_weights_file(tmp_path):
    tensors = ModelTensors.of(Net())
    data = tensors.weights_file()
    path = tmp_path / "weights"
    path.write_bytes(data)
    assert FileForm.of(path).digest(tensors.changing()) == digest_bytes(data)


def order(digest: str, path: str | None = None, data: bytes | None = None) -> Any:
    return cast("Any", SimpleNamespace(weights_digest=digest, weights_path=path, weights=data))


@pytest.fixture
def held(tmp_path):
    tensors = ModelTensors.of(nn.Linear(4, 3))
    data = tensors.weights_file()
    path = tmp_path / "weights"
    path.write_bytes(data)
    weights = HeldWeights(tensors, TASK)
    weights.take(order(digest_bytes(data), str(path)))
    return SimpleNamespace(weights=weights, tensors=tensors, data=data, digest=digest_bytes(data))


def test_an_order_may_begin_with_what_was_foreseen(held):
    update = updated(held.tensors, 1)
    digest = held.weights.foresee(update, 10)
    farms = made_by_the_farm(held.data, update, 10)
    held.weights.take(order(digest))
    assert all(torch.equal(tensor, farms[name]) for name, tensor in held.tensors.changing().items())


def test_an_order_may_begin_with_the_version_before_again(held):
    held.weights.foresee(updated(held.tensors, 1), 10)
    held.weights.take(order(held.digest))
    before = safetensors.torch.load(held.data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in held.tensors.changing().items())


def test_a_farm_that_made_something_else_is_not_foreseen_again(held, tmp_path):
    update = updated(held.tensors, 1)
    foreseen = held.weights.foresee(update, 10)
    other = safetensors.torch.save(made_by_the_farm(held.data, update, 10, lr=0.5))
    (tmp_path / "other").write_bytes(other)
    held.weights.take(order(digest_bytes(other), str(tmp_path / "other")))
    assert held.weights.foresee(update, 10) is None
    with pytest.raises(NotFound):
        held.weights.take(order(foreseen))


def test_weights_that_came_in_a_message_are_not_worth_it():
    tensors = ModelTensors.of(nn.Linear(4, 3))
    data = tensors.weights_file()
    weights = HeldWeights(tensors, TASK)
    weights.take(order(digest_bytes(data), data=data))
    assert weights.foresee(updated(tensors, 1), 10) is None


def test_weights_of_other_formats_are_left_to_the_farm(tmp_path):
    tensors = ModelTensors.of(nn.Linear(4, 3).bfloat16())
    data = tensors.weights_file()
    path = tmp_path / "weights"
    path.write_bytes(data)
    weights = HeldWeights(tensors, TASK)
    weights.take(order(digest_bytes(data), str(path)))
    update = {name: torch.zeros_like(p, requires_grad=False) for name, p in tensors.parameters.items()}
    assert weights.foresee(update, 10) is None
