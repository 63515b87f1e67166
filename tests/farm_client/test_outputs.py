"""A map's outputs come back as they were: numbers, text, arrays, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.outputs import ItemError, UnpackableOutput, as_json, pack_output, unpack_output
from protocol.maps import MAX_OUTPUT_BYTES
from protocol.outputs import MalformedOutputs

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    assert unpack_output(pack_output(value)) == value


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "complex64", "uint8"])
def test_arrays_come_back(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)[:, ::-1]
    back = unpack_output(pack_output({"x": array}))["x"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_tensors_become_arrays_and_scalars_numbers() -> None:
    assert unpack_output(pack_output(torch.ones(2, requires_grad=True))).tolist() == [1, 1]
    assert unpack_output(pack_output(torch.full((1,), 0.5, dtype=torch.bfloat16))).tolist() == [0.5]
    assert unpack_output(pack_output([np.float32(0.5), {3, 1}, (1, 2)])) == [0.5, [1, 3], [1, 2]]


def test_errors_come_back() -> None:
    error = ItemError(3, "ValueError: no", "line 1")
    assert unpack_output(pack_output(error)) == error


@pytest.mark.parametrize("value", [object(), 2**70, np.array([object()]), "\udc80", b"x" * (MAX_OUTPUT_BYTES + 1)])
def test_what_is_no_output_is_refused(value: Any) -> None:
    with pytest.raises(UnpackableOutput):
        pack_output(value)


@pytest.mark.parametrize("data", [b"", b"\xc1", pack_output("abc")[:-1], b"\xc7\x03\x01abc"])
def test_what_is_no_packed_output_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedOutputs):
        unpack_output(data)


def test_each_output_can_be_said_as_json() -> None:
    value = {"a": np.ones(2), 1: b"\x01", "e": ItemError(1, "no"), "l": [np.zeros(1)]}
    said = {"a": [1, 1], "1": "01", "e": {"position": 1, "error": "no", "traceback": ""}, "l": [[0]]}
    assert json.loads(json.dumps(as_json(value))) == said
