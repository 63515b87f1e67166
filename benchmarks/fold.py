"""Parameters per second of decoding an update from its file and adding it, beside a plain addition in memory.

One thread, the server's own sums and reader, the file in the page cache. The limit is ``axpy``, which is ``total
+= weight * source`` in float32, chunk by chunk, both in memory. Folds and limit alternate, and the best of each counts.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.torch
import torch

from benchmarks.measurement import Measurement
from coordinator.numerics.robust import trimmed_mean
from farm_server.tensors.mapped_reader import MappedFileReader
from protocol.codecs import CHUNK_ELEMENTS, BytesReader, Reader, Scratch, encode, sum_of
from protocol.codecs.decoder import chunks_of
from protocol.compression import CodecName, CodecSpec
from protocol.tensors import Layout, TensorSpec

TENSOR_ELEMENTS: Final = 4_000_000
"""The largest tensor of the model; it is a square matrix, so that every codec has something to do."""
UPDATES: Final = 8
"""Of a round."""
WEIGHT: Final = 3.0


@dataclass(frozen=True)
class Fold(Measurement):
    """One codec, read as the server does or from a memory-map.

    ``ratio`` is the share of axpy's parameters per second, measured in between.
    """

    codec: str
    mapped: bool
    params: int
    params_per_s: float
    axpy_params_per_s: float
    ratio: float
    bytes_per_param: float


@dataclass(frozen=True)
class RobustFold(Measurement):
    """One robust aggregate of memory-mapped float32 rows. ``ratio`` is the share of axpy's elements per second."""

    aggregate: str
    rows: int
    params: int
    seconds: float
    axpy_params_per_s: float
    ratio: float


@dataclass(frozen=True)
class FoldParts(Measurement):
    """Where the time of folding one kind of update goes: nanoseconds a parameter, each part alone, the best of N.

    ``map_ns``: mapping the file, tensor by tensor, with all pages in memory, and giving the map back. ``convert_ns``:
    from the stored numbers to float32 in a scratch that stays in the cache. ``add_ns``: ``axpy`` from that scratch.
    ``limit`` is the ratio that a fold would have that did nothing else.
    """

    codec: str
    params: int
    axpy_ns: float
    map_ns: float
    convert_ns: float
    add_ns: float
    limit: float


PARTED: Final = {CodecName.FP16: torch.float16, CodecName.BF16: torch.bfloat16, CodecName.INT8: torch.int8}
"""The codecs whose folds have these parts, and what their numbers are stored as."""


def measure_parts(codec: CodecName, params: int, repeats: int, folder: Path | None = None) -> FoldParts:
    """Time each part of a fold alone. ``codec`` is one of ``PARTED``."""
    with _one_thread(), tempfile.TemporaryDirectory(prefix="aifarm-fold-", dir=folder) as name:
        layout, spec = _layout(params), CodecSpec(name=codec)
        path = Path(name) / "update"
        _write_update(path, layout, spec)
        count = sum(tensor.elements for tensor in layout.tensors)
        stored = torch.ones(count, dtype=PARTED[codec])
        scratch, total = torch.zeros(CHUNK_ELEMENTS), torch.zeros(count)

        def convert() -> None:
            for start, stop in chunks_of(count):
                scratch[: stop - start].copy_(stored[start:stop])

        def add() -> None:
            for start, stop in chunks_of(count):
                total[start:stop].add_(scratch[: stop - start], alpha=WEIGHT)

        parts = (_axpy(count), lambda: _map(path), convert, add)
        axpy_ns, map_ns, convert_ns, add_ns = (s / count * 1e9 for s in _best_of_each(parts, repeats))
        limit = axpy_ns / (map_ns + convert_ns + add_ns)
        return FoldParts("fold_parts", codec, count, axpy_ns, map_ns, convert_ns, add_ns, limit)


def _map(path: Path) -> None:
    with MappedFileReader(path) as reader:
        for name in reader.header.tensors:
            reader.view(name)


def measure(codec: CodecName, params: int, repeats: int, folder: Path | None = None, *, mapped: bool = False) -> Fold:
    """Fold rounds of one update, again and again. ``folder`` chooses the disk that keeps it meanwhile."""
    with _one_thread(), tempfile.TemporaryDirectory(prefix="aifarm-fold-", dir=folder) as name:
        layout, spec = _layout(params), CodecSpec(name=codec)
        path = Path(name) / "update"
        _write_update(path, layout, spec)
        count = sum(tensor.elements for tensor in layout.tensors)
        seconds, axpy_seconds = _best_of_each((_round(path, layout, spec, mapped=mapped), _axpy(count)), repeats)
        per_s, axpy_per_s = UPDATES * count / seconds, count / axpy_seconds
        bytes_per_param = path.stat().st_size / count
        return Fold("fold", codec, mapped, count, per_s, axpy_per_s, per_s / axpy_per_s, bytes_per_param)


def measure_robust(rows: int, params: int, trim: int, repeats: int, folder: Path | None = None) -> RobustFold:
    """Take the mean without the ``trim`` smallest and largest values of each coordinate; half of the rows: median."""
    with _one_thread(), tempfile.TemporaryDirectory(prefix="aifarm-fold-", dir=folder) as name:
        mapped = _mapped_rows(Path(name) / "rows", rows, params)
        out = torch.empty(params)
        seconds, axpy_seconds = _best_of_each((lambda: trimmed_mean(mapped, out, trim), _axpy(params)), repeats)
        aggregate = "median" if trim == (rows - 1) // 2 else f"mean without {trim} at either end"
        share = rows * axpy_seconds / seconds
        return RobustFold("fold", aggregate, rows, params, seconds, params / axpy_seconds, share)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _layout(params: int) -> Layout:
    count = math.ceil(params / TENSOR_ELEMENTS)
    side = max(1, math.isqrt(params // count))
    return Layout(tuple(TensorSpec(f"layer{number:04}.weight", "F32", (side, side)) for number in range(count)))


def _write_update(path: Path, layout: Layout, codec: CodecSpec) -> None:
    """Encode tensor by tensor: they are alike, and the scratch of some codecs is large."""
    generator = torch.Generator().manual_seed(1)
    stored: dict[str, torch.Tensor] = {}
    for spec in layout.tensors:
        tensor = torch.randn(spec.shape, generator=generator)
        parts, metadata = encode({spec.name: tensor}, Layout((spec,)), codec, None)
        stored |= parts
    safetensors.torch.save_file(stored, path, metadata=metadata)


def _round(path: Path, layout: Layout, codec: CodecSpec, *, mapped: bool) -> Callable[[], None]:
    """Return a round's additions; some codecs leave a part of the work to the end, for all updates at once."""
    scratch = Scratch()
    sums = [sum_of(spec, codec, scratch) for spec in layout.tensors]

    def add() -> None:
        for number in range(UPDATES):
            with _mapped(path) if mapped else MappedFileReader(path) as reader:
                for each in sums:
                    each.add(reader, WEIGHT, first=number == 0)
        for each in sums:
            each.settle()

    return add


@contextmanager
def _mapped(path: Path) -> Iterator[Reader]:
    with path.open("rb") as file:
        yield BytesReader(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))


def _axpy(elements: int) -> Callable[[], None]:
    total, source = torch.zeros(elements), torch.randn(elements)

    def add() -> None:
        for start, stop in chunks_of(elements, CHUNK_ELEMENTS):
            total[start:stop].add_(source[start:stop], alpha=WEIGHT)

    return add


def _mapped_rows(path: Path, rows: int, params: int) -> Sequence[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with path.open("wb") as file:
        for _ in range(rows):
            file.write(torch.randn(params, generator=generator).numpy().data)
    return torch.from_numpy(np.memmap(path, np.float32, mode="r+", shape=(rows, params))).unbind()


def _best_of_each(works: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Return the least seconds of each, taken in turns, after a first time that does not count."""
    best = [math.inf] * len(works)
    for repeat in range(repeats + 1):
        for which, each in enumerate(works):
            began = time.perf_counter()
            each()
            if repeat:
                best[which] = min(best[which], time.perf_counter() - began)
    return best
