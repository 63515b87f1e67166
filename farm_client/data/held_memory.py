"""How much memory an object holds, whatever it is: tensors, arrays, strings, objects of any class.

An estimate in bounded time: of long lists a sample is looked at, and what is too deep is reckoned from the rest.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import BuiltinFunctionType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch

MOST_VISITED: Final = 20_000
"""Objects that are looked at; the rest is reckoned to be alike."""
SAMPLED_ITEMS: Final = 500
"""Items of a long list that are looked at."""
LARGE_BYTES: Final = 1 << 16
"""A buffer of so much is counted once, however many things share it."""
_UNKNOWN_BYTES: Final = 64
_NOT_HELD: Final = (type, ModuleType, BuiltinFunctionType, FrameType, GeneratorType)
"""What belongs to the program, not to its data."""
_SEQUENCES: Final = (list, tuple, set, frozenset, deque)


@dataclass(frozen=True)
class HeldMemory:
    """``own_bytes`` in small things, and the bytes of each large buffer by its identity, which others may share."""

    own_bytes: int = 0
    buffers: dict[int, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """All of it, if nobody else shared any."""
        return self.own_bytes + sum(self.buffers.values())


def measure(thing: object) -> HeldMemory:
    """Estimate what ``thing`` holds, with all that it refers to."""
    return _Survey().over(thing)


@dataclass
class _Buffer:
    size_bytes: int
    weight: float
    hits: int = 1


class _Survey:
    """One walk over the objects. Each has a weight: how many like it there are for the one that is looked at."""

    def __init__(self) -> None:
        self._own_bytes = 0.0
        self._buffers: dict[int, _Buffer] = {}
        self._seen: set[int] = set()
        self._waiting: deque[tuple[Any, float]] = deque()

    def over(self, thing: object) -> HeldMemory:
        self._waiting.append((thing, 1.0))
        visited = 0.0
        while self._waiting and len(self._seen) < MOST_VISITED:
            item, weight = self._waiting.popleft()
            if id(item) in self._seen or isinstance(item, _NOT_HELD):
                continue
            self._seen.add(id(item))
            visited += weight
            self._look_at(item, weight)
        unseen = sum(weight for _, weight in self._waiting)
        return self._result(1 + unseen / visited if visited else 1.0)

    def _result(self, scale: float) -> HeldMemory:
        buffers: dict[int, int] = {}
        own = self._own_bytes
        for key, buffer in self._buffers.items():
            # Met again and again in a sample: all share it. Met once: each item has one of its own.
            weight = 1.0 if buffer.hits > 1 else buffer.weight
            if weight == 1.0 and buffer.size_bytes >= LARGE_BYTES:
                buffers[key] = buffer.size_bytes
            else:
                own += buffer.size_bytes * weight
        return HeldMemory(int(own * scale), buffers)

    def _look_at(self, item: Any, weight: float) -> None:
        """Count one object and queue what it refers to. Whatever its class does wrong, it is counted as small."""
        try:
            if isinstance(item, torch.Tensor):
                self._count_tensor(item, weight)
            elif isinstance(item, np.ndarray):
                self._count_array(item, weight)
            elif isinstance(item, str | bytes | bytearray):
                self._buffer(id(item), sys.getsizeof(item), weight)
            elif isinstance(item, dict):
                self._own_bytes += weight * sys.getsizeof(item)
                self._queue(item.keys(), len(item), weight)
                self._queue(item.values(), len(item), weight)
            elif isinstance(item, _SEQUENCES):
                self._own_bytes += weight * sys.getsizeof(item)
                self._queue(item, len(item), weight)
            else:
                self._count_object(item, weight)
        except Exception:
            self._own_bytes += weight * _UNKNOWN_BYTES

    def _count_tensor(self, tensor: torch.Tensor, weight: float) -> None:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            self._buffer(storage.data_ptr(), storage.nbytes(), weight)
        else:
            self._own_bytes += weight * tensor._nnz() * (tensor.element_size() + 8 * tensor.ndim)

    def _count_array(self, array: Any, weight: float) -> None:
        while isinstance(array.base, np.ndarray):
            array = array.base
        if isinstance(array, np.memmap):
            return  # pages of a file: the system takes them back when it needs room
        if isinstance(array.base, torch.Tensor):
            self._count_tensor(array.base, weight)
            return
        self._buffer(id(array), array.nbytes, weight)
        if array.dtype.hasobject:
            self._queue(array.flat, array.size, weight)

    def _count_object(self, item: Any, weight: float) -> None:
        size_bytes = getattr(item, "nbytes", None)
        if isinstance(size_bytes, int) and not isinstance(item, np.generic):  # such as a table of pyarrow's
            self._buffer(id(item), size_bytes, weight)
            return
        if callable(getattr(item, "getbands", None)):  # a picture of Pillow's: its pixels are out of sight
            self._buffer(id(item), item.size[0] * item.size[1] * len(item.getbands()), weight)
            return
        with suppress(Exception):
            self._own_bytes += weight * sys.getsizeof(item, _UNKNOWN_BYTES)
        self._queue(*_referents(item), weight)

    def _buffer(self, key: int, size_bytes: int, weight: float) -> None:
        known = self._buffers.get(key)
        if known is None:
            self._buffers[key] = _Buffer(size_bytes, weight)
        else:
            known.hits += 1

    def _queue(self, items: Iterable[Any], count: int, weight: float) -> None:
        step = max(1, count // SAMPLED_ITEMS)
        sample = list(islice(items, 0, None, step)) if step > 1 else list(items)
        each = weight * count / len(sample) if sample else weight
        self._waiting.extend((item, each) for item in sample)


def _referents(item: Any) -> tuple[list[Any], int]:
    """Return what an object of any class refers to; of functions what they carry, not the module around them."""
    if isinstance(item, FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        found: list[Any] = [*cells, *(item.__defaults__ or ())]
    elif isinstance(item, MethodType):
        found = [item.__self__]
    elif isinstance(item, functools.partial):
        found = [item.func, *item.args, *item.keywords.values()]
    else:
        found = gc.get_referents(item)
    return found, len(found)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  asked only whether it is there
    except ValueError:
        return False
    return True
