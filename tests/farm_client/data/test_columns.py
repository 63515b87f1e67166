"""A data set's columns: which numbers and texts can be stored, as which type, and which row is at fault if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from farm_client.data.columns import (
    LARGEST_INT64,
    Column,
    DataError,
    as_values,
    byte_rows,
    column_of,
    is_text,
    stored_dtype,
    text_values,
    utf8,
)
from farm_client.data.order import shard_order
from farm_client.data.seeds import derived_seed
from farm_client.data.shard_file import write_shard_file
from protocol.tasks import Split
from protocol.tensors import DTYPE_BYTES

STORED = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8",
    "u2": "I32", "u4": "I64", "u8": "I64", "?": "BOOL",
}  # fmt: skip
"""By numpy's code: the unsigned types that torch lacks become wider ones."""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", STORED)
def test_each_kind_of_number_is_stored_as_torch_has_it(code: str, order: str) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(np.dtype(order + code if code != "?" else code))
    column = column_of("x", array)
    assert column == Column("x", STORED[code], (2,))
    assert column.row_bytes == 2 * DTYPE_BYTES[column.dtype]
    rows = as_values(column, array)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (3, column.row_bytes)
    back = rows.view(stored_dtype("x", array.dtype)).reshape(3, 2)
    assert np.array_equal(back, array)


_arrays = hnp.arrays(
    st.sampled_from([np.dtype(order + code) for order in "<>" for code in ("f8", "f4", "i8", "i2", "u2", "u4")]),
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
)


@given(array=_arrays)
def test_no_bit_of_a_number_is_lost(array: np.ndarray[Any, Any]) -> None:
    column = column_of("x", array)
    rows = as_values(column, array)
    assert isinstance(rows, np.ndarray)
    back = rows.view(stored_dtype("x", array.dtype)).reshape(array.shape)
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([object()]), "Python objects, which would need pickle"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.array([1 + 2j]), "complex128"),
        (np.array([1.0], np.longdouble), "save it as numbers"),
        (np.array([["a", "b"]]), "strings of shape [2] a row; one a row works"),
        (np.zeros((3, 0)), "has empty rows (shape [0]): drop it"),
        (np.zeros((3, 2, 0)), "has empty rows (shape [2, 0]): drop it"),
    ],
    ids=lambda value: str(getattr(value, "dtype", ""))[:12],
)
def test_what_is_no_column_is_refused_by_its_name(array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(DataError) as refused:
        column_of("the column", array)
    assert refused.value.message.startswith("column 'the column'")
    assert words in refused.value.message


@pytest.mark.parametrize(("first_row", "row"), [(0, 2), (1000, 2)])
def test_an_integer_beyond_int64_is_refused_and_not_made_negative(first_row: int, row: int) -> None:
    array = np.array([[0, 1], [LARGEST_INT64, 5], [7, LARGEST_INT64 + 1]], np.uint64)
    column = column_of("x", array)
    with pytest.raises(DataError, match=f"row {first_row + row}: {LARGEST_INT64 + 1} is larger than an int64"):
        as_values(column, array, first_row)
    as_values(column, array[:2])  # the largest that fits does


class TestTexts:
    """A column of strings is their UTF-8."""

    @given(st.lists(st.text()))
    def test_they_come_back(self, texts: list[str]) -> None:
        assert [one.decode() for one in text_values(Column("t", "TEXT"), texts)] == texts

    @pytest.mark.parametrize("bad", ["lone \ud800", b"\xff\xfe", b"caf\xe9"])
    def test_the_first_one_that_is_none_is_named(self, bad: str | bytes) -> None:
        with pytest.raises(DataError, match="column 't', row 12: its text is not Unicode"):
            text_values(Column("t", "TEXT"), ["fine", b"fine too", bad, bad], first_row=10)
        assert not is_text(bad)
        with pytest.raises(UnicodeError):
            utf8(bad)

    def test_their_column_has_no_fixed_row(self) -> None:
        column = column_of("t", np.array(["a", "bcd"]))
        assert (column.dtype, column.is_text, column.row_bytes) == ("TEXT", True, 0)
        assert as_values(column, np.array(["a", "bcd"])) == [b"a", b"bcd"]


@pytest.mark.parametrize("data", [b"abcdef", memoryview(b"abcdef"), np.frombuffer(b"abcdef", np.int16)])
def test_bytes_are_viewed_as_rows_without_a_copy(data: Any) -> None:
    rows = byte_rows(data, Column("x", "I16", ()))
    assert rows.shape == (3, 2)
    assert rows.tobytes() == b"abcdef"
    assert np.shares_memory(rows, np.frombuffer(data, np.uint8))


class TestShardFile:
    """Written here without torch, read by whoever reads such files."""

    COLUMNS = (Column("x", "F32", (2,)), Column("t", "TEXT"), Column("b", "BF16", ()))

    def values(self) -> dict[str, Any]:
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        halves = torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16)
        return {
            "x": byte_rows(x, self.COLUMNS[0]),
            "t": [b"a", b"", "é".encode()],
            "b": byte_rows(halves.view(torch.uint16).numpy(), self.COLUMNS[2]),
        }

    def test_equal_rows_are_equal_files(self, tmp_path: Path) -> None:
        """A shard is named by its digest: the same data cut again must not be uploaded again."""
        for number in range(5):
            write_shard_file(tmp_path / str(number), self.COLUMNS, self.values())
        assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1

    def test_each_column_is_a_tensor_and_a_text_its_bytes_and_offsets(self, tmp_path: Path) -> None:
        write_shard_file(tmp_path / "shard", self.COLUMNS, self.values())
        found = load_file(tmp_path / "shard")
        assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert bytes(found["t"].tolist()) == "aé".encode()
        assert found["t#offsets"].tolist() == [0, 1, 1, 3]
        assert found["b"].view(torch.bfloat16).tolist() == [1.5, -2.0, 0.25]


def test_the_order_does_not_depend_on_what_the_code_drew_before_nor_is_it_felt() -> None:
    before = shard_order(3, 0, 0, 20, Split.TRAIN)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(shard_order(3, 0, 0, 20, Split.TRAIN), before)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(st.integers() | st.text(max_size=5), min_size=1, max_size=4))
def test_a_derived_seed_is_one_that_every_generator_takes_and_differs_by_its_parts(parts: list[int | str]) -> None:
    seed = derived_seed(*parts)
    assert seed == derived_seed(*parts)
    assert 0 <= seed < 2**63
    assert derived_seed(*parts, "more") != seed
