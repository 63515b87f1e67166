"""What encoding refuses, and that a refusal leaves the residual alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocol.codecs import LARGEST, encode
from protocol.compression import OF_UPDATES, CodecName
from protocol.errors import LayoutMismatch, NotFinite
from protocol.tensors import Layout, TensorSpec
from tests.protocol.codecs.cases import LOSSY, codec_of, mixed, one, values


@pytest.mark.parametrize("name", [n for n in LOSSY if n is not CodecName.POWERSGD])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2 * LARGEST])
def test_a_value_that_is_not_finite_is_refused_by_name(name: CodecName, bad: float) -> None:
    layout, tensors = mixed()
    tensors["wide"][1234] = bad
    residual = {"big": torch.ones(130, 70)}
    with pytest.raises(NotFinite, match="'wide'"):
        encode(tensors, layout, codec_of(name), residual)
    assert residual.keys() == {"big"}
    assert torch.equal(residual["big"], torch.ones(130, 70))


def test_none_takes_what_it_is_given() -> None:
    stored, metadata = encode({"w": torch.tensor([float("inf")])}, one((1,)), codec_of(CodecName.NONE), {})
    assert stored["w"].item() == float("inf")
    assert metadata == {"format": "aifarm-update-1"}


@pytest.mark.parametrize("name", OF_UPDATES)
def test_a_missing_tensor_or_another_shape_is_refused(name: CodecName) -> None:
    layout, tensors = mixed()
    residual: dict[str, Tensor] = {}
    with pytest.raises(LayoutMismatch, match=r"'mean' is \[7\]; the layout says \[700\]"):
        encode(tensors | {"mean": torch.zeros(7)}, layout, codec_of(name), residual)
    del tensors["mean"]
    with pytest.raises(LayoutMismatch, match="lacks 'mean'"):
        encode(tensors, layout, codec_of(name), residual)
    assert residual == {}


@pytest.mark.parametrize("order", [1, -1])
def test_a_tensor_with_the_name_of_a_part_is_refused(order: int) -> None:
    specs = (TensorSpec("w", "F32", (900,)), TensorSpec("w/scale", "F32", (1,)))
    tensors = {"w": values((900,)), "w/scale": values((1,))}
    with pytest.raises(LayoutMismatch, match="'w/scale' has the name of an encoded part"):
        encode(tensors, Layout(specs[::order]), codec_of(CodecName.INT8), None)


@pytest.mark.parametrize("name", LOSSY)
def test_the_input_is_left_as_it_was(name: CodecName) -> None:
    tensor = values((70, 70)).requires_grad_()
    before = tensor.detach().clone()
    stored, _ = encode({"w": tensor}, one((70, 70)), codec_of(name), {})
    assert torch.equal(tensor.detach(), before)
    assert not any(part.requires_grad for part in stored.values())


@pytest.mark.parametrize("name", LOSSY)
def test_a_view_that_is_not_contiguous_is_taken(name: CodecName) -> None:
    tensor = values((90, 70))
    turned, whole = (
        encode({"w": each}, one((70, 90)), codec_of(name), None)[0] for each in (tensor.T, tensor.T.contiguous())
    )
    assert all(torch.equal(turned[key], whole[key]) for key in whole)


def test_what_is_stored_as_it_is_leaves_no_residual() -> None:
    residual: dict[str, Tensor] = {}
    layout, tensors = mixed()
    encode(tensors, layout, codec_of(CodecName.INT8), residual)
    assert residual.keys() == {"big", "half", "wide"}
