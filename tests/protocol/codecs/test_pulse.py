"""pulse: how versions differ, to the bit, whatever the bits are."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import TORCH_DTYPES, BytesReader, TensorReader, apply_delta, encode, encode_bits
from protocol.codecs.decoder import CHUNK_ELEMENTS
from protocol.compression import CodecName, CodecSpec
from protocol.contradictions import contradiction
from protocol.encoded import check_encoded, largest_bytes
from protocol.errors import LayoutMismatch
from protocol.recipe import Recipe
from protocol.tensors import Layout, TensorSpec, read_header
from protocol.zstd import unwrap_bytes, wrap_bytes
from tests.protocol.codecs.cases import RangeReader, codec_of, mixed, one, values

PULSE = CodecSpec(name=CodecName.PULSE)
FLOATS = ("F64", "F32", "F16", "BF16")


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def file_between(before: dict[str, Tensor], after: dict[str, Tensor], layout: Layout) -> bytes:
    stored, metadata = encode_bits(before, after, layout, PULSE)
    return safetensors.torch.save(stored, metadata)


@settings(deadline=None)
@given(
    dtype=st.sampled_from(FLOATS),
    shape=st.one_of(st.just((CHUNK_ELEMENTS + 7,)), st.lists(st.integers(1, 40), max_size=3).map(tuple)),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    by_ranges=st.booleans(),
)
def test_any_bits_lead_to_any_others(
    dtype: str, shape: tuple[int, ...], share: float, seed: int, by_ranges: bool
) -> None:
    """NaN, infinities and minus zero too: a version is what its digest says."""
    generator, layout, kind = torch.Generator().manual_seed(seed), one(shape, dtype), TORCH_DTYPES[dtype]
    count = layout.tensors[0].elements * kind.itemsize
    before = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    is_other = torch.rand(count, generator=generator) < share
    after = torch.where(is_other, torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator), before)
    one_version, another = ({"w": bits.view(kind).view(shape)} for bits in (before, after))
    data = file_between(one_version, another, layout)
    check_encoded(layout, PULSE, read_header(data))
    assert len(data) <= largest_bytes(layout, PULSE)
    weights = {"w": one_version["w"].clone()}
    apply_delta(weights, RangeReader(data) if by_ranges else BytesReader(data), layout, PULSE)
    assert torch.equal(bits_of(weights["w"]), after)


def test_tensors_of_every_kind_get_there() -> None:
    layout, _ = mixed()
    before, after = ({s.name: values(s.shape, seed, dtype=s.dtype) for s in layout.tensors} for seed in (1, 2))
    data = file_between(before, after, layout)
    check_encoded(layout, PULSE, read_header(data))
    weights = {name: tensor.clone() for name, tensor in before.items()}
    apply_delta(weights, BytesReader(data), layout, PULSE)
    for name, tensor in weights.items():
        expected = before[name] if name == "frozen" else after[name]
        assert torch.equal(bits_of(tensor), bits_of(expected)), name


def test_what_did_not_change_costs_next_to_nothing() -> None:
    """1 % of bfloat16 numbers one unit away: far below what 8 bits for each would be."""
    layout = one((400, 1000), "BF16")
    before = values((400, 1000), dtype="BF16")
    after = before.view(torch.int16).clone()
    after.flatten()[::100] += 1
    data = wrap_bytes(file_between({"w": before}, {"w": after.view(torch.bfloat16)}, layout))
    assert len(data) * 60 < layout.tensors[0].size_bytes
    weights = {"w": before.clone()}
    apply_delta(weights, BytesReader(unwrap_bytes(data, largest_bytes(layout, PULSE))), layout, PULSE)
    assert torch.equal(weights["w"].view(torch.int16), after)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_strangers_bits_change_their_parameter_and_nothing_else(data: st.DataObject) -> None:
    layout = Layout((TensorSpec("a", "F32", (30,)), TensorSpec("b", "BF16", (20,))))
    version = {"a": values((30,)), "b": values((20,), dtype="BF16")}
    stored, metadata = encode_bits(version, version, layout, PULSE)
    stored["a/xor"].flatten()[data.draw(st.integers(0, 119))] = data.draw(st.integers(1, 255))
    weights = {name: tensor.clone() for name, tensor in version.items()}
    apply_delta(weights, TensorReader(stored, metadata), layout, PULSE)
    assert torch.equal(bits_of(weights["b"]), bits_of(version["b"]))
    assert int((weights["a"].view(torch.int32) != version["a"].view(torch.int32)).sum()) == 1


@pytest.mark.parametrize("spoilt", [torch.zeros(3, 30, dtype=torch.uint8), torch.zeros(4, 30, dtype=torch.int8)])
def test_a_file_of_another_form_is_refused(spoilt: Tensor) -> None:
    layout, version = one((30,)), {"w": values((30,))}
    stored, metadata = encode_bits(version, version, layout, PULSE)
    with pytest.raises(LayoutMismatch, match="w/xor"):
        check_encoded(layout, PULSE, read_header(safetensors.torch.save(stored | {"w/xor": spoilt}, metadata)))


def test_no_update_is_in_it() -> None:
    with pytest.raises(LayoutMismatch, match="no update is in it"):
        encode({"w": values((30,))}, one((30,)), codec_of(CodecName.PULSE), None)
    refused = contradiction(Recipe(rounds=1, update_codec=PULSE))
    assert refused is not None
    assert "weights_codec" in refused
    assert contradiction(Recipe(rounds=1, weights_codec=PULSE)) is None
