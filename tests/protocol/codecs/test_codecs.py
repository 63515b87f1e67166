"""What every codec keeps: bounds on the error, the same bits whatever the chunks, and nothing lost but time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import BytesReader, Scratch, TensorReader, decoder, encode
from protocol.codecs.decoder import Decoder
from protocol.codecs.sparse import SparseDecoder
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.encoded import check_encoded, kept, parts_of
from protocol.tensors import TensorSpec
from tests.protocol.codecs.cases import LOSSY, RangeReader, codec_of, codecs, file_of, mixed, one, shapes, values

ROUNDING = 1e-6
"""Of float32 sums and products, relative to the largest magnitude."""


def decoded(tensor: Tensor, codec: CodecSpec) -> Tensor:
    layout = one(tuple(tensor.shape))
    return decoder(TensorReader(*encode({"w": tensor}, layout, codec, None)), layout.tensors[0], codec).decode()


def blocks_of(tensor: Tensor, block: int) -> list[Tensor]:
    return list(tensor.flatten().split(block))


def worst_case(name: CodecName, given: Tensor, codec: CodecSpec) -> float:
    """The largest error of any element that the codec's definition allows."""
    largest = float(given.abs().max())
    match name:
        case CodecName.FP16:
            return largest * 2**-11 + 2**-25
        case CodecName.BF16:
            return largest * 2**-8
        case CodecName.INT8:
            return max(float(b.abs().max()) / 254 for b in blocks_of(given, codec.block))
        case CodecName.INT4:
            return max(float(b.abs().max()) / 14 for b in blocks_of(given, codec.block))
        case _:
            return largest


@settings(deadline=None, max_examples=30)
@given(codecs.filter(lambda c: c.name not in {"demo", "powersgd"}), shapes, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_no_element_errs_by_more_than_its_codec_allows(
    codec: CodecSpec, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    tensor = values(shape, seed, scale)
    error = float((decoded(tensor, codec) - tensor).abs().max())
    assert error <= worst_case(codec.name, tensor, codec) * (1 + 1e-4)


@settings(deadline=None, max_examples=30)
@given(codecs, shapes, st.integers(0, 99))
def test_no_codec_makes_a_tensor_longer(codec: CodecSpec, shape: tuple[int, ...], seed: int) -> None:
    """Then error feedback converges: what is left is shorter than what was to be sent."""
    tensor = values(shape, seed)
    left = tensor - decoded(tensor, codec)
    assert float(left.norm()) <= float(tensor.norm()) * (1 + 1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9000), st.floats(1e-3, 1), st.integers(0, 99))
def test_topk_keeps_the_largest_exactly(elements: int, density: float, seed: int) -> None:
    codec, tensor = codec_of(CodecName.TOPK, density=density), values((elements,), seed)
    if parts_of(TensorSpec("w", "F32", (elements,)), codec) is None:
        return
    result = decoded(tensor, codec)
    count = kept(elements, density)
    largest = tensor.abs().sort(descending=True).values
    assert torch.equal(result.abs().sort(descending=True).values[:count], largest[:count])
    assert torch.equal(result, torch.where(result != 0, tensor, 0.0))
    assert int(result.count_nonzero()) <= count


def test_sparselocos_two_levels_are_the_best_for_the_chunk() -> None:
    tensor = torch.zeros(4096)
    tensor[[5, 900, 4095, 17]] = torch.tensor([1.0, -1.0, 8.0, -8.0])
    codec = codec_of(CodecName.SPARSELOCO, density=4 / 4096)
    assert torch.equal(decoded(tensor, codec), tensor)


def test_sparseloco_sends_a_chunk_of_one_magnitude_exactly() -> None:
    tensor = torch.full((5000,), -0.5)
    result = decoded(tensor, codec_of(CodecName.SPARSELOCO, density=0.25))
    assert set(result.tolist()) == {0.0, -0.5}


def test_demo_keeps_a_wave_whole() -> None:
    positions = torch.arange(4096).view(64, 64)
    wave = torch.cos(math.pi * (2 * (positions % 64) + 1) * 5 / 128) * 3
    result = decoded(wave.flatten(), codec_of(CodecName.DEMO, density=1 / 4096))
    torch.testing.assert_close(result.view(64, 64), wave, rtol=0, atol=0.02)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_powersgd_keeps_a_matrix_of_its_rank_whole(rank: int) -> None:
    matrix = values((80, rank), 1) @ values((rank, 60), 2)
    result = decoded(matrix, codec_of(CodecName.POWERSGD, rank=rank))
    torch.testing.assert_close(result, matrix, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in LOSSY if n is not CodecName.FP16])
@pytest.mark.parametrize("exponent", [-100, -60, 60, 92])
def test_tiny_and_huge_values_are_encoded_as_well_as_others(name: CodecName, exponent: int) -> None:
    tensor, codec = values((70, 90)), codec_of(name)
    scaled = decoded(tensor * 2.0**exponent, codec) / 2.0**exponent
    error, usual = (float((each - tensor).norm()) for each in (scaled, decoded(tensor, codec)))
    assert error <= usual * 1.05 + 1e-5  # powersgd begins at random, by the bytes


@pytest.mark.parametrize("name", LOSSY)
def test_zeros_stay_zeros(name: CodecName) -> None:
    assert not decoded(torch.zeros(70, 70), codec_of(name)).any()


@pytest.mark.parametrize("name", LOSSY)
def test_the_same_tensor_gives_the_same_bytes(name: CodecName) -> None:
    layout, tensors = mixed()
    first, second = (encode(tensors, layout, codec_of(name), {})[0] for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@settings(deadline=None, max_examples=30)
@given(codecs, shapes, st.integers(1, 4), st.integers(0, 99))
def test_error_feedback_conserves_the_sum(codec: CodecSpec, shape: tuple[int, ...], rounds: int, seed: int) -> None:
    layout = one(shape)
    residual: dict[str, Tensor] = {}
    given_sum = sent_sum = torch.zeros(shape, dtype=torch.float64)
    largest = 0.0
    for each in range(rounds):
        tensor = values(shape, seed + each)
        reader = TensorReader(*encode({"w": tensor}, layout, codec, residual))
        sent = decoder(reader, layout.tensors[0], codec).decode()
        given_sum, sent_sum = given_sum + tensor, sent_sum + sent
        largest = max(largest, float(tensor.abs().max()), float(sent.abs().max()))
    left = residual.get("w", torch.zeros(shape))
    assert (left.dtype, tuple(left.shape)) == (torch.float32, shape)
    tolerance = 20 * rounds * ROUNDING * max(largest, float(left.abs().max()))
    torch.testing.assert_close(sent_sum + left, given_sum, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOSSY)
def test_what_one_update_loses_comes_with_later_ones(name: CodecName) -> None:
    """A constant gradient: the mean of what was sent comes near it, however little each update carries."""
    tensor, codec, layout = values((100, 90)), codec_of(name, density=0.05, rank=2), one((100, 90))
    residual: dict[str, Tensor] = {}
    sent = torch.zeros(100, 90)
    for _ in range(100):
        reader = TensorReader(*encode({"w": tensor}, layout, codec, residual))
        sent += decoder(reader, layout.tensors[0], codec).decode()
    assert float((sent / 100 - tensor).norm()) < 0.25 * float(tensor.norm())


def slices_of(each: Decoder, step: int, first: int) -> Tensor:
    """Decode in pieces of ``step`` elements after one of ``first``."""
    elements = each.spec.elements
    out = torch.full((elements,), float("nan"))
    borders = [0, *range(first, elements, step), elements]
    for start, stop in pairwise(borders):
        each.read(start, out[start:stop])
    return out


@settings(deadline=None, max_examples=30)
@given(codecs, shapes, st.integers(0, 99), st.integers(700, 9000), st.integers(1, 700))
def test_any_pieces_decode_to_the_same_bits(
    codec: CodecSpec, shape: tuple[int, ...], seed: int, step: int, first: int
) -> None:
    layout = one(shape)
    data = file_of({"w": values(shape, seed)}, layout, codec)
    whole = decoder(BytesReader(data), layout.tensors[0], codec)
    pieces = decoder(RangeReader(data), layout.tensors[0], codec)
    first = min(first, layout.tensors[0].elements)
    assert torch.equal(slices_of(pieces, step, first), whole.decode().flatten())


@pytest.mark.parametrize("name", OF_UPDATES)
@pytest.mark.parametrize("weight", [1.0, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [4096, 10_001])
def test_adding_is_weight_times_decoded_for_any_reader_and_chunk(
    name: CodecName, weight: float, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (Decoder, SparseDecoder):
        monkeypatch.setattr(each, "chunk_elements", chunk)
    shape, codec = (90, 700), codec_of(name, density=0.01)
    layout = one(shape)
    data = file_of({"w": values(shape)}, layout, codec)
    expected = decoder(BytesReader(data), layout.tensors[0], codec).decode().flatten().to(dtype) * weight
    totals = []
    for reader in (BytesReader(data), RangeReader(data)):
        each = decoder(reader, layout.tensors[0], codec)
        total = torch.full((shape[0] * shape[1],), float("nan"), dtype=dtype)
        each.add_to(total, weight, overwrite=True)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
        each.add_to(total, weight)
        torch.testing.assert_close(total, 2 * expected, rtol=1e-5, atol=1e-5)
        totals.append(total)
    assert torch.equal(*totals)


@pytest.mark.parametrize("name", OF_UPDATES)
def test_a_whole_update_survives_the_file_and_shared_scratch(name: CodecName) -> None:
    layout, tensors = mixed()
    codec, scratch = codec_of(name), Scratch()
    data = file_of(tensors, layout, codec)
    reader = RangeReader(data)
    check_encoded(layout, codec, reader.header)
    for spec in layout.returned:
        result = decoder(reader, spec, codec, scratch).decode()
        exact = parts_of(spec, codec) is None
        assert result.shape == tensors[spec.name].shape
        assert not exact or torch.equal(result.to(tensors[spec.name].dtype), tensors[spec.name])
        assert torch.equal(result, decoder(BytesReader(data), spec, codec).decode())


@pytest.mark.parametrize("name", OF_UPDATES)
def test_data_at_odd_addresses_is_read_as_well(name: CodecName) -> None:
    """A stranger's file need not be padded: here each part lies one byte off."""
    shape, codec = (900, 9), codec_of(name)
    layout = one(shape)
    stored, metadata = encode({"w": values(shape)}, layout, codec, None)
    data = bytearray(b"\0") + safetensors.torch.save(stored, metadata)
    odd = BytesReader(memoryview(data)[1:])
    expected = decoder(TensorReader(stored), layout.tensors[0], codec).decode()
    assert torch.equal(decoder(odd, layout.tensors[0], codec).decode(), expected)


def test_fp16_brings_what_does_not_fit_later() -> None:
    layout, codec, residual = one((100,)), codec_of(CodecName.FP16), {}
    encode({"w": torch.full((100,), 1e5)}, layout, codec, residual)
    assert torch.equal(residual["w"], torch.full((100,), 1e5 - 65504.0))
