from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save

from protocol.errors import LayoutMismatch, MalformedTensors, TensorError
from protocol.tensors import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    UPDATE_METADATA,
    Role,
    TensorSpec,
    check_update,
    parse_layout,
    read_header,
    weights_metadata,
)

MODEL = {
    "weight": np.zeros((2, 3), np.float32),
    "mean": np.zeros(3, np.float32),
    "steps": np.zeros((), np.int64),
    "table": np.zeros(4, np.float64),
}
ROLES = {"mean": Role.BUFFER, "steps": Role.BUFFER, "table": Role.FROZEN}
WEIGHTS = save(MODEL, weights_metadata(ROLES, {"head": "weight"}))


def update_file(**changes: Any) -> bytes:
    tensors = {name: value for name, value in (MODEL | changes).items() if name != "table" and value is not None}
    return save(tensors, dict(UPDATE_METADATA))


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_weights_file_defines_the_layout() -> None:
    layout = parse_layout(WEIGHTS)
    assert layout.tensors == (
        TensorSpec("mean", "F32", (3,), Role.BUFFER),
        TensorSpec("steps", "I64", (), Role.BUFFER),
        TensorSpec("table", "F64", (4,), Role.FROZEN),
        TensorSpec("weight", "F32", (2, 3)),
    )
    assert layout.tied == {"head": "weight"}
    assert [t.name for t in layout.parameters] == ["weight"]
    assert [t.name for t in layout.returned] == ["mean", "steps", "weight"]
    assert [(t.elements, t.size_bytes) for t in layout.tensors] == [(3, 12), (1, 8), (4, 32), (6, 24)]


def test_the_metadata_does_not_depend_on_the_order_given() -> None:
    backwards = dict(reversed(ROLES.items()))
    assert weights_metadata(ROLES, {}) == weights_metadata(backwards, {})
    assert weights_metadata({"w": Role.PARAMETER}, {})["roles"] == "{}"


def test_the_header_tells_where_the_data_is() -> None:
    data = save({"a": np.arange(3, dtype=np.int16)})
    place = read_header(data).tensors["a"]
    assert data[place.start : place.stop] == np.arange(3, dtype=np.int16).tobytes()


def test_leading_bytes_are_enough_when_the_size_is_known() -> None:
    prefix = memoryview(WEIGHTS)[: 8 + int.from_bytes(WEIGHTS[:8], "little")]
    assert read_header(prefix, total_bytes=len(WEIGHTS)) == read_header(WEIGHTS)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_each_dtype_is_read(dtype: str) -> None:
    size = 2 * DTYPE_BYTES[dtype]
    header = read_header(raw({"a": entry(dtype, [2], [0, size])}, bytes(size)))
    assert header.tensors["a"].dtype == dtype


def test_empty_tensors_and_empty_files_are_legal() -> None:
    assert read_header(save({})).tensors == {}
    tensors = {"a": np.zeros((0, 5), np.float32), "b": np.ones(1, np.float32), "c": np.zeros(0, np.int8)}
    assert read_header(save(tensors)).tensors["a"].shape == (0, 5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut"),
        (b"\x05\0\0\0\0\0\0", "cut"),
        (b"\x05\0\0\0\0\0\0\0{}", "cut"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "limit"),
        (b"\xff" * 8, "limit"),
        (raw(b"{"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw(b"\xff\xfe"), "not JSON"),
        (raw([1]), "not a JSON object"),
        (raw({"a": 1}), "header.a"),
        (raw({"a": {"dtype": "F32"}}), "header.a.shape: Field required"),
        (raw({"a": entry(shape=[-1])}), "header.a.shape.0"),
        (raw({"a": entry(shape=[1.5])}), "header.a.shape.0"),
        (raw({"a": entry(shape=[True])}), "header.a.shape.0"),
        (raw({"a": entry(offsets=[0])}), "header.a.data_offsets"),
        (raw({"a": entry(dtype="F8_E5M2")}), "dtype 'F8_E5M2'"),
        (raw({"a": entry(shape=[2])}, bytes(4)), "8 bytes, and has 4"),
        (raw({"a": entry(shape=[2**50, 2**50])}, bytes(4)), "and has 4"),
        (raw({"a": entry(offsets=[4, 0])}, bytes(4)), "and has -4"),
        (raw({"a": entry()}, bytes(3)), "is cut"),
        (raw({"a": entry()}, bytes(5)), "left over"),
        (raw({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
        (raw({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), "hole"),
        (raw({"__metadata__": {"format": 1}}), "__metadata__.format"),
    ],
)
def test_bad_files_say_what_is_wrong(data: bytes, says: str) -> None:
    with pytest.raises(MalformedTensors, match=says):
        read_header(data)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "no weights file"),
        (dict(UPDATE_METADATA), "no weights file"),
        ({"roles": "["}, "not JSON"),
        ({"roles": '{"mean": "decoration"}'}, "roles.mean"),
        ({"roles": '{"ghost": "buffer"}'}, "'ghost'"),
        ({"tied": '{"head": "ghost"}'}, "'ghost'"),
        ({"tied": '{"mean": "weight"}'}, "'mean' is tied"),
        ({"roles": "{}"}, "parameter 'steps' is I64"),
    ],
)
def test_bad_metadata_says_what_is_wrong(metadata: dict[str, str], says: str) -> None:
    complete = weights_metadata(ROLES, {}) if set(metadata) & {"roles", "tied"} else {}
    with pytest.raises(MalformedTensors, match=says):
        parse_layout(save(MODEL, complete | metadata))


def test_a_matching_update_passes() -> None:
    check_update(parse_layout(WEIGHTS), read_header(update_file()))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": None}, "lacks 'weight'"),
        ({"weight": None, "mean": None}, "lacks 'mean', 'weight'"),
        ({"more": np.zeros(1)}, "has 'more'"),
        ({"weight": np.zeros((3, 2), np.float32)}, r"'weight' is F32 \[3, 2\] .* F32 \[2, 3\]"),
        ({"weight": np.zeros((2, 3), np.float16)}, r"'weight' is F16 .* F32"),
        ({f"x{i}": np.zeros(1) for i in range(9)}, "and 6 more"),
    ],
)
def test_a_mismatch_names_the_tensor(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(LayoutMismatch, match=says):
        check_update(parse_layout(WEIGHTS), read_header(update_file(**changes)))


def test_frozen_tensors_are_not_returned() -> None:
    with pytest.raises(LayoutMismatch, match="'table'"):
        check_update(parse_layout(WEIGHTS), read_header(save(MODEL, dict(UPDATE_METADATA))))


def test_a_weights_file_is_no_update() -> None:
    with pytest.raises(LayoutMismatch, match="no update file"):
        check_update(parse_layout(WEIGHTS), read_header(WEIGHTS))


@given(st.integers(0, len(WEIGHTS) - 1), st.binary(min_size=1, max_size=8))
def test_damage_raises_only_typed_errors(at: int, patch: bytes) -> None:
    with suppress(TensorError):
        parse_layout(WEIGHTS[:at] + patch + WEIGHTS[at + len(patch) :])


@given(st.integers(0, len(WEIGHTS) - 1))
def test_a_file_cut_anywhere_is_refused(at: int) -> None:
    with pytest.raises(MalformedTensors):
        read_header(WEIGHTS[:at])


@given(st.integers(0, len(WEIGHTS) - 1), st.binary(min_size=1, max_size=4))
def test_what_passes_here_the_safetensors_package_reads_too(at: int, patch: bytes) -> None:
    damaged = WEIGHTS[:at] + patch + WEIGHTS[at + len(patch) :]
    try:
        header = read_header(damaged)
    except MalformedTensors:
        return
    assert {name for name, _ in deserialize(damaged)} == set(header.tensors)


@pytest.mark.parametrize("field", ["shape", "data_offsets"])
@pytest.mark.parametrize("number", [2**63, 10**4200])
def test_an_absurd_number_in_a_header_is_a_typed_error(field: str, number: int) -> None:
    """The message about it would have had more digits than Python writes."""
    entry: dict[str, object] = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    data = json.dumps({"w": entry | {field: [number, number]}}).encode()
    with pytest.raises(MalformedTensors, match=field):
        read_header(len(data).to_bytes(8, "little") + data + b"\0" * 4)


def test_a_message_about_a_tensor_is_short_whatever_its_name() -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}
    data = json.dumps({"w" * 1_000_000: entry}).encode()
    with pytest.raises(MalformedTensors) as raised:
        read_header(len(data).to_bytes(8, "little") + data + b"\0" * 4)
    assert len(raised.value.message) < 400
