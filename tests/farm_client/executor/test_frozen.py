"""Frozen tensors are read once, from a file of their own; what the task's code does to them is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from farm_client.executor.failures import CodeError
from farm_client.executor.frozen import BuiltFrozen, FrozenDiffers, FrozenTensors
from farm_client.executor.layout import ModelTensors
from protocol.digests import digest_bytes
from protocol.tensors import Role, parse_layout
from tests.farm_client.executor.bench_task import Bench, update_of

MEDDLING = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(3, 4).requires_grad_(False)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                self.base.weight.data.mul_(0.5)
                self.base.bias.data = self.base.bias.data + 1
            return self.head(self.base(x))

    def build_model(config):
        return Net()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(dtype)
    model[0].requires_grad_(False)
    return model


def test_a_weights_file_is_without_them_and_equal_ones_are_equal_files() -> None:
    tensors = ModelTensors.of(model_of())
    assert {t.name for t in parse_layout(tensors.weights_file()).tensors} == {"1.weight", "1.bias"}
    frozen = tensors.frozen_file()
    assert frozen is not None
    roles = {t.name: t.role for t in parse_layout(frozen).tensors}
    assert roles == {"0.weight": Role.FROZEN, "0.bias": Role.FROZEN}
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 9))
    other[0].load_state_dict(tensors.model[0].state_dict())
    other[0].requires_grad_(False)
    assert ModelTensors.of(other).frozen_file() == frozen, "tasks over one base share its blob"
    assert ModelTensors.of(nn.Linear(1, 1)).frozen_file() is None


@given(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]), st.integers(0, 7))
def test_any_change_is_undone(tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, place: int) -> None:
    tensors = ModelTensors.of(model_of(dtype))
    path = tmp_path_factory.mktemp("frozen") / "file"
    path.write_bytes(tensors.frozen_file() or b"")
    before = {name: tensor.detach().clone() for name, tensor in tensors.still().items()}
    frozen = FrozenTensors(path, tensors)
    flat = torch.cat([tensors.model[0].weight.data.view(-1), tensors.model[0].bias.data])
    assert len(flat) == 8
    target = tensors.model[0].weight if place < 6 else tensors.model[0].bias
    target.data.view(-1)[place % 6] += 0.5
    frozen.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.still().items())


def test_a_repeated_assignment_is_the_same_though_its_code_meddles_with_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MEDDLING)
    first, second = update_of(bench.train()), update_of(bench.train())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(first) == {"head.weight", "head.bias"}


def test_an_order_may_still_bring_them_with_the_weights(tmp_path: Path) -> None:
    folders = [tmp_path / "apart", tmp_path / "together"]
    for folder in folders:
        folder.mkdir()
    apart, together = (Bench(folder, MEDDLING) for folder in folders)
    together.runner._weights.frozen = None
    together.weights = safetensors.torch.save(apart.whole())
    first, second = update_of(apart.train()), update_of(together.train())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_file_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(ModelTensors.of(model_of()).frozen_file() or b"")
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    other[1].requires_grad_(False)
    with pytest.raises(CodeError, match="does not build the submitted model"):
        FrozenTensors(path, ModelTensors.of(other))


def test_what_is_built_as_it_was_submitted_needs_no_file() -> None:
    tensors = ModelTensors.of(model_of())
    assert tensors.frozen_digest() == digest_bytes(tensors.frozen_file() or b"")
    built = BuiltFrozen.like(tensors, tensors.frozen_digest() or "")
    built.restore()
    with torch.no_grad():
        tensors.frozen["0.weight"][0, 0] += 1
    assert built.changed() == ["0.weight"]
    with pytest.raises(FrozenDiffers):
        built.restore()
    with pytest.raises(FrozenDiffers):
        BuiltFrozen.like(tensors, "0" * 64)


PART = 1 << 16
"""Words that are hashed at a time."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("elements", [2, 5, 1001, 3 * PART + 1])
def test_what_leaves_the_sum_of_the_bits_as_it_was_is_seen(dtype: torch.dtype, elements: int) -> None:
    values = torch.zeros(elements, dtype=dtype)
    values[:2] = torch.tensor([1, 0])
    model = nn.Sequential(nn.Linear(1, 1), nn.Module())
    model[1].register_parameter("still", nn.Parameter(values.clone(), requires_grad=False))
    frozen = BuiltFrozen(ModelTensors.of(model))
    assert frozen.changed() == []
    for other in (values.flip(0), values.roll(elements // 2), values.roll(2 * PART)):
        with torch.no_grad():
            model[1].still.copy_(other)
        assert frozen.changed() == ([] if torch.equal(other, values) else ["1.still"])


@pytest.mark.parametrize("scale", [1, -1])
def test_signs_that_flip_in_pairs_are_seen(scale: int) -> None:
    model = model_of()
    with torch.no_grad():
        model[0].weight.copy_(scale * torch.tensor([[1.0, -1.0, 2.0], [-2.0, 3.0, -3.0]]))
    frozen = BuiltFrozen(ModelTensors.of(model))
    with torch.no_grad():
        model[0].weight.neg_()
    assert frozen.changed() == ["0.weight"]


def test_a_view_of_other_memory_is_hashed_as_its_own_bytes() -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    model = nn.Sequential(nn.Linear(1, 1), nn.Module())
    model[1].register_parameter("still", nn.Parameter(memory[3:10], requires_grad=False))
    frozen = BuiltFrozen(ModelTensors.of(model))
    memory[[2, 10]] = 99
    assert frozen.changed() == []
    memory[[8, 9]] = memory[[9, 8]]
    assert frozen.changed() == ["1.still"]


def test_nothing_frozen_has_no_digest() -> None:
    assert ModelTensors.of(nn.Linear(2, 2)).frozen_digest() is None
