"""What is kept in memory is measured, whatever it holds, and what is shared counts once."""

from __future__ import annotations

import functools
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.data.held_memory import measure

MB = 1_000_000


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content: object) -> None:
        self.content = content


class Hostile:
    """Its size, its attributes and its equality all fail."""

    def __init__(self) -> None:
        self.held = np.zeros(MB, np.uint8)

    def __sizeof__(self) -> int:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def closure_over(content: object) -> Any:
    return lambda: content


def cycle(content: object) -> list[Any]:
    ring: list[Any] = [content]
    ring.append(ring)
    return ring


class Dataset(torch.utils.data.Dataset[Any]):
    def __init__(self, content: object) -> None:
        self.content = content

    def method(self) -> None:
        """Do nothing."""


def a_megabyte(kind: str) -> Any:
    return {
        "array": lambda: np.zeros(MB, np.uint8),
        "view of an array": lambda: np.zeros(MB, np.uint8)[10:20],
        "object array": lambda: np.array([bytes(MB), None], object),
        "tensor": lambda: torch.zeros(MB, dtype=torch.uint8),
        "slice of a tensor": lambda: torch.zeros(MB, dtype=torch.uint8)[5:6],
        "bytes": lambda: bytes(MB),
        "text": lambda: "x" * MB,
        "text in pieces": lambda: ["y" * 1000 + str(i) for i in range(1000)],
        "numbers": lambda: [float(i) for i in range(31_000)],
        "sparse": _sparse,
    }[kind]()


def _sparse() -> torch.Tensor:
    index = torch.arange(50_000).repeat(2, 1)
    return torch.sparse_coo_tensor(index, torch.ones(50_000), (50_000, 50_000), check_invariants=False)


KINDS = [
    *("array", "view of an array", "object array", "tensor", "slice of a tensor", "bytes", "text", "text in pieces"),
    *("numbers", "sparse"),
]
HOLDERS = {
    "itself": lambda content: content,
    "a list": lambda content: [content],
    "a dict of dicts": lambda content: {"a": {"b": (content,)}},
    "a deque": lambda content: deque([content]),
    "a data set": Dataset,
    "slots": Slotted,
    "a namespace": lambda content: SimpleNamespace(content=content),
    "a closure": closure_over,
    "a bound method": lambda content: Dataset(content).method,
    "a partial": lambda content: functools.partial(print, content),
    "a subset": lambda content: torch.utils.data.Subset(Dataset(content), [0]),
    "a cycle": cycle,
}


@pytest.mark.parametrize("holder", list(HOLDERS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_is_found_wherever_it_is(kind: str, holder: str) -> None:
    held = measure(HOLDERS[holder](a_megabyte(kind))).total_bytes
    assert 0.8 * MB < held < 1.8 * MB


def test_a_buffer_is_known_by_its_identity_and_counts_once() -> None:
    whole = torch.zeros(10 * MB, dtype=torch.uint8)
    one, other = (measure(Dataset([whole[i : i + 1] for i in range(200)])) for _ in range(2))
    assert one.buffers == other.buffers == {whole.untyped_storage().data_ptr(): 10 * MB}
    assert one.own_bytes < MB
    arrays = [np.zeros(MB, np.uint8) for _ in range(3)]
    assert measure(arrays + arrays).total_bytes == pytest.approx(3 * MB, rel=0.01)


@given(count=st.integers(1, 30_000), row_bytes=st.sampled_from([10, 100, 1000]))
def test_a_long_list_is_reckoned_from_a_sample(count: int, row_bytes: int) -> None:
    rows = [bytes(row_bytes) + i.to_bytes(4) for i in range(count)]
    exact = sum(map(len, rows))
    held = measure(Dataset(rows)).total_bytes
    assert 0.9 * exact < held < 1.3 * exact + 60 * count + 10_000


@given(rows=st.integers(1, 3000), width=st.integers(1, 40))
def test_rows_of_python_objects_are_reckoned_from_a_sample(rows: int, width: int) -> None:
    data = [{"id": i, "vector": [float(i + j) for j in range(width)]} for i in range(rows)]
    held = measure(data).total_bytes
    least = rows * width * 24
    assert least < held < 12 * least + 1000 * rows + 10_000


def test_files_in_memory_maps_are_not_kept(tmp_path: Any) -> None:
    array = np.memmap(tmp_path / "big", np.uint8, "w+", shape=(10 * MB,))
    assert measure([array, array[3:]]).total_bytes < 10_000


def test_objects_that_fail_at_everything_are_counted_as_small() -> None:
    assert measure([Hostile(), torch.nn.Linear(2, 2), iter([1]), open, re_scanner()]).total_bytes >= 0


def re_scanner() -> object:
    import re

    return re.compile("a").scanner("b")


def test_what_says_its_own_size_is_believed_and_pictures_are_reckoned() -> None:
    assert measure(SimpleNamespace(nbytes=5 * MB)).total_bytes == 5 * MB
    picture = SimpleNamespace(getbands=lambda: ("R", "G", "B"), size=(1000, 1000))
    assert measure([picture]).total_bytes > 3 * MB
