"""A client makes the very file that the server has, from an older version and differences."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_client.executor.messages import Difference
from farm_client.executor.rebase import rebase
from protocol.codecs import TORCH_DTYPES, BytesReader, apply_delta, encode
from protocol.codecs.registry import CODECS
from protocol.compression import CodecName, CodecSpec
from protocol.errors import FarmError, LayoutMismatch, MalformedTensors
from protocol.tensors import Layout, Role, parse_layout, read_header, weights_metadata
from protocol.zstd import wrap
from tests.farm_client.executor.awkward import AWKWARD
from tests.farm_client.executor.bench_task import Bench

INT8 = CodecSpec(name=CodecName.INT8, block=16)


def next_version(weights: bytes, codec: CodecSpec, seed: int) -> tuple[bytes, bytes]:
    """Return a difference and the weights file that the server makes by it: in memory, the first file's header kept."""
    header = read_header(weights)
    layout = parse_layout(header)
    generator = torch.Generator().manual_seed(seed)
    change = {}
    for spec in layout.returned:
        values = torch.randn(spec.shape, generator=generator, dtype=torch.float64) * 0.01
        change[spec.name] = (values if spec.is_float else (values * 1000).round()).to(TORCH_DTYPES[spec.dtype])
    stored, metadata = encode(change, layout, codec, None)
    difference = safetensors.torch.save(stored, metadata=metadata)
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(weights).items()}
    apply_delta(tensors, BytesReader(difference), layout, codec)
    return difference, weights[: _data_start(weights)] + b"".join(_in_file_order(weights, tensors))


def _data_start(weights: bytes) -> int:
    return min(place.start for place in read_header(weights).tensors.values())


def _in_file_order(weights: bytes, tensors: dict[str, torch.Tensor]) -> list[bytes]:
    places = read_header(weights).tensors
    names = sorted(places, key=lambda name: (places[name].start, places[name].stop))
    return [tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in names]


def wrapped(difference: bytes) -> bytes:
    target = io.BytesIO()
    wrap(io.BytesIO(difference), target)
    return target.getvalue()


def made_by(folder: Path, weights: bytes, *differences: Difference) -> bytes:
    base, made = folder / "base", folder / "made"
    base.write_bytes(weights)
    rebase(base, differences, made)
    assert base.read_bytes() == weights, "the base is others' too"
    return made.read_bytes()


@pytest.mark.parametrize("name", [CodecName.NONE, *CODECS])
def test_a_chain_leads_to_the_servers_file(tmp_path: Path, name: CodecName) -> None:
    codec = CodecSpec(name=name, block=16, density=1 / 4)
    first = Bench(tmp_path, AWKWARD).weights
    one, second = next_version(first, codec, 1)
    two, third = next_version(second, codec, 2)
    on_disk = tmp_path / "two"
    on_disk.write_bytes(two)
    chain = (Difference(codec=codec, data=wrapped(one)), Difference(codec=codec, path=str(on_disk)))
    assert made_by(tmp_path, first, *chain) == third
    assert made_by(tmp_path, first, chain[0]) == second
    before, after = safetensors.torch.load(first), safetensors.torch.load(third)
    assert not torch.equal(before["front.weight"], after["front.weight"])
    assert not torch.equal(before["calls"], after["calls"])
    assert "fixed.weight" not in before


SHAPES = st.sampled_from([(), (0,), (1,), (7,), (16,), (33,), (4, 0), (5, 9), (2, 3, 4), (300, 3)])
KINDS = st.sampled_from(
    [
        *((dtype, role) for dtype in ("F64", "F32", "F16", "BF16") for role in Role),
        *((dtype, role) for dtype in ("I64", "I32", "I16", "I8", "U8", "BOOL") for role in (Role.BUFFER, Role.FROZEN)),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SHAPES, KINDS), min_size=1, max_size=6), st.integers(0, 2**31))
def test_any_layout(tmp_path: Path, tensors: list[tuple[tuple[int, ...], tuple[str, Role]]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"t{i}": (torch.randn(shape, generator=generator) * 10).to(TORCH_DTYPES[dtype])
        for i, (shape, (dtype, _)) in enumerate(tensors)
    }
    roles = {f"t{i}": role for i, (_, (_, role)) in enumerate(tensors)}
    file = safetensors.torch.save(weights, metadata=weights_metadata(roles, {}))
    difference, expected = next_version(file, INT8, seed)
    assert made_by(tmp_path, file, Difference(codec=INT8, data=difference)) == expected


def _of_another_model(weights: bytes, difference: bytes) -> bytes:
    other = safetensors.torch.save({"w": torch.zeros(64)}, metadata=weights_metadata({}, {}))
    return next_version(other, INT8, 0)[0]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_of_another_model, LayoutMismatch),
        (lambda weights, difference: difference[:-1], MalformedTensors),
        (lambda weights, difference: b"", MalformedTensors),
        (lambda weights, difference: weights, LayoutMismatch),
    ],
    ids=["of another model", "cut", "empty", "not a difference"],
)
def test_a_bad_difference_is_refused(
    tmp_path: Path, spoil: Callable[[bytes, bytes], bytes], error: type[FarmError]
) -> None:
    weights = Bench(tmp_path, AWKWARD).weights
    difference, _ = next_version(weights, INT8, 1)
    with pytest.raises(error):
        made_by(tmp_path, weights, Difference(codec=INT8, data=spoil(weights, difference)))


def test_a_difference_in_another_codec_is_refused(tmp_path: Path) -> None:
    weights = Bench(tmp_path, AWKWARD).weights
    difference, _ = next_version(weights, INT8, 1)
    with pytest.raises(LayoutMismatch, match="block"):
        made_by(tmp_path, weights, Difference(codec=CodecSpec(name=CodecName.INT8, block=32), data=difference))


def test_weights_that_lie_where_torch_cannot_use_them_are_refused(tmp_path: Path) -> None:
    head = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},'
    head += b'"__metadata__":{"format":"aifarm-weights-1","roles":"{\\"a\\":\\"buffer\\"}","tied":"{}"}}'
    weights = len(head).to_bytes(8, "little") + head + bytes(9)
    assert isinstance(parse_layout(weights), Layout)
    with pytest.raises(MalformedTensors, match="torch cannot use"):
        made_by(tmp_path, weights)
