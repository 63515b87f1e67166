"""What quantized layers keep beside their weights, by stand-ins for the layers of bitsandbytes, which is not needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from farm_client.executor.frozen import BuiltFrozen, FrozenDiffers, FrozenTensors
from farm_client.executor.layout import ModelTensors
from farm_client.executor.quantized import beside_weights, differing, keep_as_loaded
from protocol.tensors import Role


class FourBit(nn.Module):
    """A layer as bitsandbytes' 4-bit ones: scales of its weight's own, a form that is written anew, and repacking."""

    def __init__(self, form: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4, dtype=torch.uint8), requires_grad=False)
        self.scales = [torch.ones(2)]
        self.form = form
        self.support_avx512bf16_for_cpu = True

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.scales[0]
        destination[f"{prefix}weight.quant_state.form"] = torch.tensor([self.form], dtype=torch.uint8)

    def forward(self, x):
        if self.support_avx512bf16_for_cpu and not self.training:
            self.weight.data = self.weight.data * 2 + 1
        return x * self.weight.float().sum() * self.scales[0].sum()


class EightBit(nn.Module):
    """A layer as bitsandbytes' 8-bit ones: scales beside the weight, not below its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4, dtype=torch.int8), requires_grad=False)
        self.scale = [torch.ones(4)]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}SCB"] = self.scale[0]


class WithExtraState(nn.Linear):
    """A layer with an extra state of its own, which may change."""

    def get_extra_state(self):
        return torch.ones(1)

    def set_extra_state(self, state):
        """Take nothing."""


def model_of(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1), *layers)


def frozen_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (FourBit(), {"1.weight.absmax", "1.weight.quant_state.form"}),
        (EightBit(), {"1.SCB"}),
        (nn.Linear(2, 2).requires_grad_(False), set()),
        (nn.BatchNorm1d(2).requires_grad_(False), set()),
        (WithExtraState(2, 2).requires_grad_(False), set()),
    ],
)
def test_what_a_layer_keeps_is_told_by_its_state_dict(layer: nn.Module, names: set[str]) -> None:
    model = model_of(layer)
    assert beside_weights(model, frozen_of(model)).keys() == names


def test_a_layer_that_trains_keeps_nothing_for_the_farm() -> None:
    assert beside_weights(model_of(FourBit()), {}) == {}


def test_it_is_frozen_and_goes_with_the_frozen_tensors() -> None:
    tensors = ModelTensors.of(model_of(FourBit(), EightBit()))
    assert tensors.still().keys() == {
        "1.weight", "1.weight.absmax", "1.weight.quant_state.form", "2.weight", "2.SCB"
    }  # fmt: skip
    assert tensors.changing().keys() == {"0.weight", "0.bias"}
    roles = {one.name: one.role for one in tensors.layout().tensors}
    assert {roles[name] for name in tensors.still()} == {Role.FROZEN}
    assert tensors.pulled().keys() == tensors.model.state_dict().keys()


def test_an_evaluation_leaves_the_weights_as_they_were_loaded() -> None:
    tensors = ModelTensors.of(model_of(FourBit()))
    built = BuiltFrozen(tensors)
    tensors.model.eval()(torch.ones(1, 1))
    assert built.changed() == []


def test_what_is_rewritten_all_the_same_is_noticed() -> None:
    tensors = ModelTensors.of(model_of(FourBit()))
    built = BuiltFrozen(tensors)
    tensors.model[1].support_avx512bf16_for_cpu = True  # as a later release might, by another name
    tensors.model.eval()(torch.ones(1, 1))
    assert built.changed() == ["1.weight"]


def test_other_layers_are_let_alone() -> None:
    model = nn.Sequential(nn.Linear(1, 1), FourBit())
    keep_as_loaded(model)
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
    assert model[1].support_avx512bf16_for_cpu is False


def test_other_scales_are_other_frozen_tensors() -> None:
    one, other = ModelTensors.of(model_of(FourBit())), ModelTensors.of(model_of(FourBit()))
    digest = one.frozen_digest() or ""
    BuiltFrozen.like(other, digest)
    other.beside["1.weight.absmax"].mul_(2)
    with pytest.raises(FrozenDiffers):
        BuiltFrozen.like(other, digest)


def test_a_file_brings_scales_into_the_layer(tmp_path: Path) -> None:
    submitted, here = ModelTensors.of(model_of(FourBit())), ModelTensors.of(model_of(FourBit()))
    submitted.beside["1.weight.absmax"].mul_(3)
    (tmp_path / "frozen").write_bytes(submitted.frozen_file() or b"")
    frozen = FrozenTensors(tmp_path / "frozen", here)
    assert here.model[1].scales[0].tolist() == [3.0, 3.0]
    here.model[1].scales[0].zero_()
    assert frozen.changed() == ["1.weight.absmax"]
    frozen.restore()
    assert here.model[1].scales[0].tolist() == [3.0, 3.0]


def test_a_form_that_no_file_can_bring_is_refused_by_name(tmp_path: Path) -> None:
    submitted, here = ModelTensors.of(model_of(FourBit(form=4))), ModelTensors.of(model_of(FourBit(form=5)))
    (tmp_path / "frozen").write_bytes(submitted.frozen_file() or b"")
    with pytest.raises(CodeError, match=r"quantized otherwise here than .*\(1\.weight\.quant_state\.form\)"):
        FrozenTensors(tmp_path / "frozen", here)


def test_a_model_without_such_layers_is_not_asked() -> None:
    assert differing(nn.Linear(1, 1), {}) == []


class SeveralInOne(torch.Tensor):
    """A tensor as torchao's quantized ones, which say so by this method of torch's."""

    def __tensor_flatten__(self):
        return [], None


def test_a_tensor_of_several_is_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.ones(2, 2).as_subclass(SeveralInOne), requires_grad=False)
    with pytest.raises(CodeError, match=r"weight is a SeveralInOne, .* quantize the base with bitsandbytes"):
        ModelTensors.of(model)
