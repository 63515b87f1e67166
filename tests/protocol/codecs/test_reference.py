"""docs/reference/codecs.md against the code: its tables, and a decoder that follows its words without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codecs import LARGEST, BytesReader, decoder
from protocol.compression import OF_VERSIONS, CodecName, CodecSpec
from protocol.encoded import ENCODED_FORMAT, parts_of
from protocol.tensors import Header, TensorSpec
from protocol.zstd import LARGEST_WINDOW_LOG, MAGIC, WORTHWHILE
from tests.protocol.codecs.cases import LOSSY, codec_of, codecs, file_of, one, shapes, values

PAGE = (Path(__file__).parents[3] / "docs/reference/codecs.md").read_text(encoding="utf-8")
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1", "I16": "<u2", "I32": "<i4"}
"""How numpy reads each dtype; bf16 and the indices of topk as their sixteen bits."""


def ceil(value: float) -> int:
    return math.ceil(value)


def documented_parts() -> Iterator[tuple[str, str, str, str]]:
    yield from re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\w+) \| `\[(.+)\]` \|$", PAGE, re.MULTILINE)


def kept(count: int, density: float) -> int:
    return min(count, max(1, math.floor(count * density + 0.5)))


@settings(deadline=None)
@given(codecs, shapes)
def test_the_table_of_parts_is_the_codes(codec: CodecSpec, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("w", "F32", shape)
    rows, columns = shape[0], spec.elements // shape[0]
    names: dict[str, Any] = {
        "n": spec.elements,
        "B": codec.block,
        "ceil": ceil,
        "kept": lambda m: kept(m, codec.density),
        "rows": rows,
        "columns": columns,
        "r": min(codec.rank, rows, columns),
    }
    documented = {
        part: (dtype, tuple(eval(f"[{shape}]", names)))
        for name, part, dtype, shape in documented_parts()
        if name == codec.name
    }
    bytes_of = {"F32": 4, "I32": 4, "I16": 2, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    total = sum(bytes_of[dtype] * math.prod(shape) for dtype, shape in documented.values())
    parts = parts_of(spec, codec)
    if parts is None:
        assert total >= spec.size_bytes or (codec.name is CodecName.POWERSGD and len(shape) < 2)
    else:
        assert {part: (p.dtype, p.shape) for part, p in parts.items()} == documented


def test_every_codec_is_described() -> None:
    assert {name for name, *_ in documented_parts()} == {*LOSSY, *OF_VERSIONS}
    described = {name for heading in re.findall(r"^### (.+)$", PAGE, re.MULTILINE) for name in heading.split(", ")}
    assert described == {*LOSSY, *OF_VERSIONS}


@pytest.mark.parametrize("name", LOSSY)
def test_the_sizes_are_as_documented(name: CodecName) -> None:
    shape = (1000, 1000) if name is CodecName.POWERSGD else (2**24,)
    parts = parts_of(TensorSpec("w", "F32", shape), CodecSpec(name=name))
    assert parts
    bits = 8 * sum(part.size_bytes for part in parts.values()) / math.prod(shape)
    (row,) = (line for line in PAGE.splitlines() if re.match(rf"\| .*`{name}`.*\| [\d.]+ \| [\d.]+ \|$", line))
    documented_bits, documented_ratio = map(float, row.split("|")[2:4])
    assert (bits, 32 / bits) == pytest.approx((documented_bits, documented_ratio), rel=0.02)


def test_the_numbers_in_the_text_are_the_codes() -> None:
    assert f"`{ENCODED_FORMAT}`" in PAGE
    assert f"`{MAGIC.hex(' ')}`" in PAGE
    assert f"at most {WORTHWHILE:.0%}".replace("%", " %") in PAGE
    assert f"2^{LARGEST_WINDOW_LOG} bytes" in PAGE
    assert f"over 2^{int(math.log2(LARGEST))} in magnitude" in PAGE


class Documented:
    """Decodes a file as the page says, in plain Python and numpy's float32."""

    def __init__(self, data: bytes, header: Header, shape: tuple[int, ...], codec: CodecSpec) -> None:
        self.data, self.header, self.shape, self.codec = data, header, shape, codec
        self.n = math.prod(shape)

    def part(self, short: str) -> np.ndarray[Any, Any]:
        place = self.header.tensors[f"w/{short}"]
        raw = np.frombuffer(self.data[place.start : place.stop], NUMPY[place.dtype])
        if place.dtype == "BF16":
            raw = (raw.astype("<u4") << 16).view("<f4")
        return raw.reshape(place.shape)

    def fields(self, short: str, count: int, bits: int) -> list[int]:
        size = ceil(count * bits / 8)
        stored = self.part(short).tolist()
        return [stored[e % size] >> bits * (e // size) & (1 << bits) - 1 for e in range(count)]

    def scaled(self, numbers: Any) -> np.ndarray[Any, Any]:
        scales = self.part("scale")[np.arange(self.n) // self.codec.block]
        return np.asarray(numbers, np.float32) * scales

    def places(self) -> np.ndarray[Any, Any]:
        """Places in the tensor of each chunk's entries."""
        k, chunks = kept(4096, self.codec.density), ceil(self.n / 4096)
        high = np.array(self.fields("high", chunks * k, 4))
        return (self.part("index").astype(int) + 256 * high).reshape(chunks, k) + np.arange(chunks)[:, None] * 4096

    def fp16(self) -> np.ndarray[Any, Any]:
        return self.part("f16").astype(np.float32)

    def bf16(self) -> np.ndarray[Any, Any]:
        return self.part("bf16")

    def int8(self) -> np.ndarray[Any, Any]:
        return self.scaled(self.part("q"))

    def int4(self) -> np.ndarray[Any, Any]:
        return self.scaled([field - 16 * (field > 7) for field in self.fields("q", self.n, 4)])

    def sign(self) -> np.ndarray[Any, Any]:
        return self.scaled([1 - 2 * field for field in self.fields("sign", self.n, 1)])

    def topk(self) -> np.ndarray[Any, Any]:
        out = np.zeros(self.n, np.float32)
        segments = np.repeat(np.arange(ceil(self.n / 65536)), self.part("count"))
        out[segments * 65536 + self.part("index")] = self.part("value")
        return out

    def sparseloco(self) -> np.ndarray[Any, Any]:
        places = self.places()
        levels = np.array(self.fields("level", places.size, 2)).reshape(places.shape)
        small_large = np.take_along_axis(self.part("scale"), levels % 2, axis=1)
        out = np.zeros(ceil(self.n / 4096) * 4096, np.float32)
        out[places] = np.where(levels >= 2, -small_large, small_large)
        return out[: self.n]

    def demo(self) -> np.ndarray[Any, Any]:
        i = np.arange(64)
        d = np.cos(np.pi * (2 * i + 1) * i[:, None] / 128) * math.sqrt(2 / 64)
        d[0] = math.sqrt(1 / 64)
        d = d.astype(np.float32)
        f = np.zeros(ceil(self.n / 4096) * 4096, np.float32)
        f[self.places()] = self.part("value")
        f = f.reshape(-1, 64, 64)
        h, x = np.zeros_like(f), np.zeros_like(f)
        for u in range(64):
            h += f[:, u, None, :] * d[u][:, None]
        for u in range(64):
            x += h[:, :, u, None] * d[u]
        return x.reshape(-1)[: self.n]

    def powersgd(self) -> np.ndarray[Any, Any]:
        p, q = self.part("p"), self.part("q")
        out = np.zeros((len(p), len(q)), np.float32)
        for t in range(p.shape[1]):
            out += p[:, t, None] * q[None, :, t]
        return out.reshape(-1)


@settings(deadline=None, max_examples=30)
@given(codecs, shapes, st.integers(0, 99))
def test_the_documented_decoder_gives_the_same_bits(codec: CodecSpec, shape: tuple[int, ...], seed: int) -> None:
    layout = one(shape)
    data = file_of({"w": values(shape, seed)}, layout, codec)
    reader = BytesReader(data)
    if "w" in reader.header.tensors:
        return
    documented = getattr(Documented(data, reader.header, shape, codec), codec.name)()
    decoded = decoder(reader, layout.tensors[0], codec).decode()
    assert torch.equal(decoded, torch.from_numpy(documented.reshape(shape)))


@pytest.mark.parametrize("name", LOSSY)
def test_the_documented_decoder_gives_the_same_bits_across_many_chunks(name: CodecName) -> None:
    shape, codec = (300, 1001), codec_of(name)
    data = file_of({"w": values(shape)}, one(shape), codec)
    reader = BytesReader(data)
    documented = getattr(Documented(data, reader.header, shape, codec), name)()
    decoded = decoder(reader, one(shape).tensors[0], codec).decode()
    assert torch.equal(decoded, torch.from_numpy(documented.reshape(shape)))
