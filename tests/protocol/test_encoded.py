from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.encoded import (
    check_encoded,
    encoded_metadata,
    kept,
    largest_bytes,
    parts_of,
    stored_tensors,
    untouched_in,
    untouched_metadata,
)
from protocol.errors import LayoutMismatch, TensorError
from protocol.tensors import DTYPE_BYTES, Header, Layout, Role, TensorSpec, read_header

LAYOUT = Layout(
    (
        TensorSpec("bias", "F32", (40,)),
        TensorSpec("frozen", "F32", (9, 9), Role.FROZEN),
        TensorSpec("half", "F16", (70, 70)),
        TensorSpec("mean", "F32", (900,), Role.BUFFER),
        TensorSpec("steps", "I64", (), Role.BUFFER),
        TensorSpec("weight", "F32", (64, 100)),
        TensorSpec("wide", "F64", (5000,)),
    )
)
LOSSY = [name for name in OF_UPDATES if name is not CodecName.NONE]


def head_of(layout: Layout, codec: CodecSpec, **changes: Any) -> dict[str, Any]:
    """The JSON header of a file in that codec; ``changes`` replace entries, None leaves one out."""
    entries: dict[str, Any] = {}
    end = 0
    for name, part in stored_tensors(layout, codec).items():
        dtype, shape = changes.get(name, (part.dtype, part.shape)) or (None, None)
        if dtype is None:
            continue
        start, end = end, end + DTYPE_BYTES[dtype] * (1 if not shape else _product(shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return {"__metadata__": encoded_metadata(codec), **entries}


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def header_of(document: dict[str, Any]) -> Header:
    text = json.dumps(document).encode()
    last = max((e["data_offsets"][1] for name, e in document.items() if name != "__metadata__"), default=0)
    return read_header(len(text).to_bytes(8, "little") + text, 8 + len(text) + last)


@pytest.mark.parametrize("name", OF_UPDATES)
def test_a_file_as_the_layout_needs_it_is_accepted(name: CodecName) -> None:
    codec = CodecSpec(name=name)
    header = header_of(head_of(LAYOUT, codec))
    check_encoded(LAYOUT, codec, header)
    assert header.total_bytes <= largest_bytes(LAYOUT, codec)


@pytest.mark.parametrize("name", LOSSY)
def test_buffers_and_what_would_not_shrink_are_stored_as_they_are(name: CodecName) -> None:
    stored = stored_tensors(LAYOUT, CodecSpec(name=name))
    assert {"mean", "steps"} <= stored.keys()
    assert "frozen" not in stored
    for spec in LAYOUT.parameters:
        parts = {key: part for key, part in stored.items() if key == spec.name or key.startswith(f"{spec.name}/")}
        assert sum(part.size_bytes for part in parts.values()) <= spec.size_bytes
    assert ("half" in stored) == (name in {CodecName.FP16, CodecName.BF16})
    assert ("bias" in stored) == (name in {CodecName.DEMO, CodecName.POWERSGD})


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(CodecName),
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.lists(st.integers(0, 50), max_size=4)), max_size=5),
)
def test_no_file_is_larger_than_the_bound(name: CodecName, drawn: list[tuple[str, list[int]]]) -> None:
    specs = {label: TensorSpec(label, "F32", tuple(shape)) for label, shape in drawn}
    layout, codec = Layout(tuple(specs.values())), CodecSpec(name=name)
    with suppress(LayoutMismatch):  # names that clash
        header = header_of(head_of(layout, codec))
        assert header.total_bytes <= largest_bytes(layout, codec)
        stored = stored_tensors(layout, codec)
        data = sum(part.size_bytes for part in stored.values())
        assert largest_bytes(layout, codec) < data + 5000 + 500 * len(stored)


@pytest.mark.parametrize("name", LOSSY)
def test_another_dtype_shape_or_set_of_parts_is_refused(name: CodecName) -> None:
    codec = CodecSpec(name=name)
    for key, part in stored_tensors(LAYOUT, codec).items():
        longer = (*part.shape[:-1], part.shape[-1] + 1) if part.shape else (1,)
        other = "F16" if part.dtype == "BF16" else "BF16"
        for change, message in (
            ((part.dtype, longer), f"tensor '{key}' is {part.dtype}"),
            ((other, part.shape), f"tensor '{key}' is {other}"),
            (None, f"lacks '{key}'"),
        ):
            with pytest.raises(LayoutMismatch, match=message.replace("[", r"\[")):
                check_encoded(LAYOUT, codec, header_of(head_of(LAYOUT, codec, **{key: change})))
    extra = head_of(LAYOUT, codec) | {"weight/more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    with pytest.raises(LayoutMismatch, match="has 'weight/more'"):
        check_encoded(LAYOUT, codec, header_of(extra))


@pytest.mark.parametrize(
    ("used", "asked"),
    [
        (CodecSpec(), CodecSpec(name="int8")),
        (CodecSpec(name="int8"), CodecSpec()),
        (CodecSpec(name="int4"), CodecSpec(name="int8")),
        (CodecSpec(name="int8", block=128), CodecSpec(name="int8")),
        (CodecSpec(name="topk", density=0.5), CodecSpec(name="topk")),
        (CodecSpec(name="powersgd", rank=5), CodecSpec(name="powersgd")),
    ],
)
def test_another_codec_than_the_tasks_is_refused(used: CodecSpec, asked: CodecSpec) -> None:
    with pytest.raises(LayoutMismatch, match=r"codec|format"):
        check_encoded(LAYOUT, asked, header_of(head_of(LAYOUT, used)))


def test_settings_of_the_writer_alone_may_differ() -> None:
    used = CodecSpec(name="int8", error_feedback=False, zstd=False)
    check_encoded(LAYOUT, CodecSpec(name="int8"), header_of(head_of(LAYOUT, used)))


@pytest.mark.parametrize("codec", ["", "[]", "{", '{"name":"int7"}', '{"name":"int8","block":1}'])
def test_a_codec_that_cannot_be_read_is_refused(codec: str) -> None:
    document = head_of(LAYOUT, CodecSpec(name="int8"))
    document["__metadata__"]["codec"] = codec
    with pytest.raises(LayoutMismatch, match="does not say its codec"):
        check_encoded(LAYOUT, CodecSpec(name="int8"), header_of(document))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(LOSSY), st.data())
def test_every_mutation_of_a_header_is_refused_or_harmless(name: CodecName, data: st.DataObject) -> None:
    """Whatever a header says, it is refused by an error of the tree, or it has the very parts that are expected."""
    codec = CodecSpec(name=name)
    text = bytearray(json.dumps(head_of(LAYOUT, codec)).encode())
    total = header_of(head_of(LAYOUT, codec)).total_bytes
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TensorError):
        header = read_header(len(text).to_bytes(8, "little") + bytes(text), total)
        check_encoded(LAYOUT, codec, header)
        found = {key: (entry.dtype, entry.shape) for key, entry in header.tensors.items()}
        assert found == {key: (part.dtype, part.shape) for key, part in stored_tensors(LAYOUT, codec).items()}


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(min_value=0, max_value=1, exclude_min=True))
def test_a_sparse_codec_keeps_at_least_one_and_at_most_all(elements: int, density: float) -> None:
    assert 1 <= kept(elements, density) <= elements
    assert abs(kept(elements, density) - elements * density) <= 1


def test_a_frozen_tensor_and_a_buffer_have_no_parts() -> None:
    for role in (Role.FROZEN, Role.BUFFER):
        assert parts_of(TensorSpec("w", "F32", (9999,), role), CodecSpec(name="int8")) is None


@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec(name=CodecName.INT8)])
@pytest.mark.parametrize("text", ["", "7", '"bias"', "{}", "[1]", '["mean"]', '["frozen"]', '["nobody"]', "[" * 500])
def test_what_is_called_untouched_must_be_parameters(codec: CodecSpec, text: str) -> None:
    head = head_of(LAYOUT, codec)
    head["__metadata__"]["untouched"] = text
    with pytest.raises(LayoutMismatch, match="untouched"):
        check_encoded(LAYOUT, codec, header_of(head))


def test_untouched_parameters_are_read_back() -> None:
    head = head_of(LAYOUT, CodecSpec())
    head["__metadata__"] |= untouched_metadata({"weight", "bias"})
    check_encoded(LAYOUT, CodecSpec(), header_of(head))
    assert untouched_in(LAYOUT, header_of(head)) == {"bias", "weight"}
    assert untouched_metadata(()) == {}
