"""A stranger's file whose header fits is still refused for what its data say, and never does harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import BytesReader, TensorReader, bad_numbers, decoder, encode
from protocol.codecs.packing import pack
from protocol.codecs.reading import Scratch
from protocol.codecs.sums import sum_of
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.errors import MalformedTensors
from protocol.tensors import Layout, Role, TensorSpec
from tests.protocol.codecs.cases import LOSSY, codec_of, codecs, file_of, mixed, one, shapes, values

SHAPE = (200, 100)


def stored_of(codec: CodecSpec) -> dict[str, Tensor]:
    return encode({"w": values(SHAPE)}, one(SHAPE), codec, None)[0]


def verdict(stored: dict[str, Tensor], codec: CodecSpec) -> str | None:
    found = bad_numbers(TensorReader(stored), one(SHAPE), codec)
    return found and found.tensor


@settings(deadline=None, max_examples=40)
@given(codecs, shapes, st.sampled_from([1e-30, 1.0, 1e28]))
def test_what_an_encoder_writes_is_accepted(codec: CodecSpec, shape: tuple[int, ...], scale: float) -> None:
    layout = one(shape)
    data = file_of({"w": values(shape, scale=scale)}, layout, codec)
    assert bad_numbers(BytesReader(data), layout, codec) is None


@pytest.mark.parametrize("name", OF_UPDATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_every_float_of_a_file_is_looked_at(name: CodecName, bad: float) -> None:
    layout, tensors = mixed()
    codec = codec_of(name)
    stored, _ = encode(tensors, layout, codec, None)
    for key, tensor in stored.items():
        if tensor.is_floating_point() and tensor.numel():
            spoilt = tensor.clone().flatten()
            spoilt[-1] = bad
            reader = TensorReader(stored | {key: spoilt.view(tensor.shape)})
            assert bad_numbers(reader, layout, codec) == (key, False)
    assert bad_numbers(TensorReader(stored), layout, codec) is None


@pytest.mark.parametrize("name", [n for n in LOSSY if n is not CodecName.FP16])
def test_magnitudes_that_would_decode_to_infinity_are_refused(name: CodecName) -> None:
    codec = codec_of(name)
    stored = stored_of(codec)
    floats = [key for key, tensor in stored.items() if tensor.is_floating_point()]
    for key in floats:
        assert verdict(stored | {key: torch.full_like(stored[key], 1e38)}, codec) == key
    limits = {key: torch.full_like(stored[key], 2.0 if key == "w/p" else 2.0**112) for key in floats}
    assert verdict(stored | limits, codec) is None
    each = decoder(TensorReader(stored | limits), one(SHAPE).tensors[0], codec)
    assert each.decode().isfinite().all()


def swapped(indices: Tensor) -> Tensor:
    indices = indices.clone()
    indices[[3, 4]] = indices[[4, 3]]
    return indices


def doubled(indices: Tensor) -> Tensor:
    indices = indices.clone()
    indices[3] = indices[4]
    return indices


@pytest.mark.parametrize("change", [swapped, doubled, torch.zeros_like])
@pytest.mark.parametrize("name", [CodecName.TOPK, CodecName.SPARSELOCO, CodecName.DEMO])
def test_indices_out_of_order_are_refused(name: CodecName, change: Callable[[Tensor], Tensor]) -> None:
    codec = codec_of(name)
    stored = stored_of(codec)
    if name is not CodecName.TOPK:  # first without the high bits, so that the low ones alone decide
        stored["w/high"] = pack(torch.zeros(stored["w/index"].numel(), dtype=torch.uint8), 4)
        count = stored["w/index"].numel() // 5
        stored["w/index"] = torch.arange(count, dtype=torch.uint8).repeat(5)
    assert verdict(stored, codec) is None
    with pytest.raises(MalformedTensors, match="indices of 'w' are not in ascending order"):
        verdict(stored | {"w/index": change(stored["w/index"])}, codec)


def test_an_index_past_the_end_is_refused() -> None:
    codec = codec_of(CodecName.TOPK)
    stored = stored_of(codec)
    stored["w/index"][-1] = 20_000
    with pytest.raises(MalformedTensors, match="out of range"):
        verdict(stored, codec)
    stored["w/index"][-1] = -1  # 65535
    with pytest.raises(MalformedTensors, match="out of range"):
        verdict(stored, codec)


@pytest.mark.parametrize("counts", [[0], [401], [-1], [2**31 - 1], [-(2**31)]])
def test_counts_that_do_not_add_up_are_refused(counts: list[int]) -> None:
    codec = codec_of(CodecName.TOPK)
    with pytest.raises(MalformedTensors, match="do not add up"):
        verdict(stored_of(codec) | {"w/count": torch.tensor(counts, dtype=torch.int32)}, codec)


def test_counts_that_add_up_by_a_negative_one_are_refused() -> None:
    layout, codec = one((200_000,)), codec_of(CodecName.TOPK)
    stored, _ = encode({"w": values((200_000,))}, layout, codec, None)
    stored["w/count"] = torch.tensor([4001, 0, -1, 0], dtype=torch.int32)
    with pytest.raises(MalformedTensors, match="do not add up"):
        bad_numbers(TensorReader(stored), layout, codec)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LOSSY), st.data())
def test_any_data_is_refused_or_decodes_to_finite_numbers(name: CodecName, data: st.DataObject) -> None:
    codec = codec_of(name)
    stored = stored_of(codec)
    key = data.draw(st.sampled_from(sorted(stored)))
    raw = stored[key].clone().flatten().view(torch.uint8)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, raw.numel() - 1))] = data.draw(st.integers(0, 255))
    stored[key] = raw.view(stored[key].dtype).view(stored[key].shape)
    try:
        if verdict(stored, codec) is not None:
            return
    except MalformedTensors:
        return
    each = decoder(TensorReader(stored), one(SHAPE).tensors[0], codec)
    total = torch.zeros(SHAPE[0] * SHAPE[1])
    each.add_to(total, 1.0)
    assert total.isfinite().all()
    assert each.decode().isfinite().all()


def float_layout(dtype: str, role: Role = Role.PARAMETER) -> Layout:
    return Layout((TensorSpec("w", dtype, (3,), role),))


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
@settings(max_examples=30)
@given(samples=st.integers(1, 2**40), updates=st.integers(1, 5), share=st.floats(0.5, 4.0))
def test_no_sum_over_a_round_of_what_passes_is_infinite(dtype: str, samples: int, updates: int, share: float) -> None:
    kind = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}[dtype]
    total_in = torch.float64 if dtype == "F64" else torch.float32
    largest = torch.finfo(total_in).max / (4096 * samples)
    layout, codec = float_layout(dtype), CodecSpec()
    reader = TensorReader({"w": torch.tensor([1.0, -largest * share, 0.5], dtype=torch.float64).to(kind)})
    found = bad_numbers(reader, layout, codec, samples)
    if share > 1.02:
        assert found == ("w", True)
    if share < 0.98:
        assert found is None
        total = sum_of(layout.tensors[0], codec, Scratch())
        for number in range(updates):
            total.add(reader, samples / updates, first=number == 0)
        assert bool(total.settle().isfinite().all())


@pytest.mark.parametrize("name", LOSSY)
def test_encoded_numbers_too_large_for_a_round_of_many_samples_are_refused(name: CodecName) -> None:
    codec = codec_of(name)
    stored = stored_of(codec)
    for key in (key for key, tensor in stored.items() if tensor.is_floating_point() and key not in {"w/p", "w/f16"}):
        reader = TensorReader(stored | {key: torch.full_like(stored[key], 2.0**100)})
        assert bad_numbers(reader, one(SHAPE), codec, 1) is None
        assert bad_numbers(reader, one(SHAPE), codec, 2**20) == (key, True)


def test_a_buffer_may_hold_the_largest_number_there_is() -> None:
    """A mask of finfo.min is a buffer of many models; its mean is taken without a sum."""
    stored = {"w": torch.full((3,), torch.finfo(torch.float64).min, dtype=torch.float64)}
    assert bad_numbers(TensorReader(stored), float_layout("F64", Role.BUFFER), CodecSpec(), 2**40) is None
