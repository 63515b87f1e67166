from __future__ import annotations

import math
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.assignments import Assign, Result
from protocol.codec import decode, encode
from protocol.errors import MalformedFrame, OversizedFrame, ProtocolError, UnknownMessage
from protocol.limits import MAX_FRAME_BYTES
from protocol.messages import Message, Ready
from protocol.packing import MAX_ITEMS, pack_map
from tests.protocol.samples import BRIEF, BY_TYPE, MESSAGE_TYPES, SAMPLES


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: m.type)
def test_each_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


def test_the_samples_cover_the_union() -> None:
    assert {type(m) for m in SAMPLES} == set(MESSAGE_TYPES)


def test_a_config_keeps_its_nones() -> None:
    received = decode(encode(BY_TYPE["assign"]))
    assert isinstance(received, Assign)
    assert received.task.config == BRIEF.config
    assert received.task.config["schedule"] is None


def test_inline_bytes_travel_as_bin() -> None:
    raw = msgpack.unpackb(encode(BY_TYPE["result"]))
    assert raw["update"]["inline"] == b"weights"


def test_absent_optional_fields_are_left_out() -> None:
    assert "task_id" not in msgpack.unpackb(encode(BY_TYPE["resume"].model_copy(update={"task_id": None})))


def test_metrics_may_be_nan_or_infinite() -> None:
    sent = Result(assignment_id="a", fence=1, samples=1, metrics={"loss": math.nan, "grad_norm": math.inf})
    received = decode(encode(sent))
    assert isinstance(received, Result)
    assert math.isnan(received.metrics["loss"])
    assert received.metrics["grad_norm"] == math.inf


def test_unknown_fields_are_ignored() -> None:
    assert decode(pack_map({"type": "ready", "slots": 2, "mood": "fine"})) == Ready(slots=2)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x81\xa1\xff\x01", "utf-8"),
        (msgpack.packb({"type": "ready", "slots": 1}) + b"\x00", "extra data"),
        (msgpack.packb([1, 2]), "is a list and must be a map"),
        (msgpack.packb(7), "is a int"),
        (b"\x81\x01\x02", "int is not allowed"),
        (b"\x81\xc4\x04type\x01", "key that is not text"),
        (b"\x81\xa1x\xd4\x05\x01", "extension type 5"),
        (b"\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\x91" * 2000, "not msgpack"),
        (msgpack.packb({"slots": 1}), "'type'"),
        (msgpack.packb({"type": 5}), "'type'"),
        (msgpack.packb({"type": "ready"}), "ready: field slots: Field required"),
        (msgpack.packb({"type": "ready", "slots": "many"}), "ready: field slots"),
        (msgpack.packb({"type": "ready", "slots": 65}), "less than or equal to 64"),
        (msgpack.packb({"type": "heartbeat", "load": {"cpu": 2}}), "heartbeat: field load.cpu"),
    ],
)
def test_malformed_frames_say_what_is_wrong(frame: bytes, says: str) -> None:
    with pytest.raises(MalformedFrame, match=says):
        decode(frame)


def test_an_unknown_type_is_told_apart_from_a_malformed_frame() -> None:
    with pytest.raises(UnknownMessage, match="'teleport'"):
        decode(pack_map({"type": "teleport"}))


def test_an_oversized_frame_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(OversizedFrame, match=str(MAX_FRAME_BYTES)):
        decode(b"\xc1" * (MAX_FRAME_BYTES + 1))
    with pytest.raises(OversizedFrame):
        decode(encode(Ready(slots=1)), max_bytes=4)


def test_a_frame_of_exactly_the_limit_passes() -> None:
    frame = encode(Ready(slots=1))
    assert decode(frame, max_bytes=len(frame)) == Ready(slots=1)


def test_lists_are_bounded() -> None:
    with pytest.raises(MalformedFrame, match="max_array_len"):
        decode(pack_map({"type": "hello", "versions": [1] * (MAX_ITEMS + 1)}))


@pytest.mark.parametrize("value", [{1, 2}, 2**70, "\ud800", object()])
def test_a_config_without_a_msgpack_form_is_refused_with_a_reason(value: object) -> None:
    brief = BRIEF.model_copy(update={"config": {"x": value}})
    with pytest.raises(MalformedFrame, match="cannot be sent"):
        encode(BY_TYPE["assign"].model_copy(update={"task": brief}))


def test_a_config_nested_without_end_is_refused() -> None:
    nested: list[object] = []
    for _ in range(2000):
        nested = [nested]
    brief = BRIEF.model_copy(update={"config": {"x": nested}})
    with pytest.raises(MalformedFrame):
        encode(BY_TYPE["assign"].model_copy(update={"task": brief}))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(SAMPLES), st.data())
def test_a_message_with_any_field_replaced_decodes_or_raises_a_typed_error(
    message: Message, data: st.DataObject
) -> None:
    fields = message.model_dump()
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_values)
    with suppress(ProtocolError):
        decode(pack_map(fields))
