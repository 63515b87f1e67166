"""The shape of a frame is known before any of it is made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.assignments import LogLine, MetricPoint, Progress
from protocol.errors import MalformedFrame
from protocol.limits import MAX_BATCH_MESSAGES, MAX_CLIENT_DEPTH, MAX_CLIENT_VALUES, MAX_FRAME_BYTES, MAX_STRIKES
from protocol.messages import Heartbeat
from protocol.packing import check_shape, pack_map, unpack
from protocol.session import Session, SessionState, Side
from tests.protocol.samples import BY_TYPE
from tests.protocol.test_session import errors, session

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=60,
)
PADDING = b"x" * 4096
"""A frame is looked at only if it is not small."""


def counted(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + counted(v) for v in value.values())
    return 1 + (sum(map(counted, value)) if isinstance(value, list) else 0)


def depth(value: object) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inside), default=0) if inside else 0


@given(VALUES)
def test_exactly_what_holds_too_much_is_refused(value: object) -> None:
    frame = msgpack.packb([PADDING, value])
    items, levels = 2 + counted(value), 1 + depth(value)
    check_shape(frame, items, levels)
    with pytest.raises(MalformedFrame, match="values"):
        check_shape(frame, items - 1, levels)
    with pytest.raises(MalformedFrame, match="deep"):
        check_shape(frame, items, levels - 1)


@given(st.binary(min_size=1, max_size=40).map(lambda piece: piece * (5000 // len(piece) + 1)))
def test_junk_is_left_to_the_decoder(junk: bytes) -> None:
    with contextlib.suppress(MalformedFrame):
        check_shape(junk, MAX_CLIENT_VALUES, MAX_CLIENT_DEPTH)
        unpack(junk, MAX_FRAME_BYTES)


@pytest.mark.parametrize(
    "made",
    [
        lambda: msgpack.packb({"type": "no_such_type", "x": [[] for _ in range(4_000_000)]}),
        lambda: msgpack.packb({"type": "no_such_type", "x": {str(i): None for i in range(300_000)}}),
        lambda: b"\x91" * 1_000_000,
        lambda: b"\xdd\x00\x01\xff\xff" * 800_000,
        lambda: b"\xdf\x00\x00\xff\xff" * 800_000,
    ],
    ids=["lists", "map", "deep", "announced lists", "announced maps"],
)
def test_a_frame_of_many_values_costs_little(made: Callable[[], bytes]) -> None:
    frame, receiver = made(), session(Side.SERVER, SessionState.OPEN)
    before = time.process_time()
    assert receiver.receive(frame) == []
    assert time.process_time() - before < 0.25
    assert receiver.strikes == 1
    assert [error.code for error in errors(receiver)] == ["malformed_frame"]


def test_nothing_of_what_small_frames_announce_is_reserved() -> None:
    with pytest.raises(MalformedFrame):
        unpack(b"\xdd\x00\x01\xff\xff" * 800, MAX_FRAME_BYTES)


def test_an_honest_client_s_largest_frames_are_taken() -> None:
    progress = BY_TYPE["progress"]
    assert isinstance(progress, Progress)
    largest = progress.model_copy(
        update={
            "metrics": tuple(MetricPoint(name="m" * 100, value=1.0, step=2**40) for _ in range(200)),
            "logs": tuple(LogLine(text="x" * 2000) for _ in range(200)),
        }
    )
    client, server = session(Side.CLIENT, SessionState.OPEN), session(Side.SERVER, SessionState.OPEN)
    assert server.receive(client.send(largest)) == [largest]
    beats = [pack_map(Heartbeat().model_dump(exclude_none=True))] * MAX_BATCH_MESSAGES
    assert len(server.receive(msgpack.Packer().pack_array_header(len(beats)) + b"".join(beats))) == MAX_BATCH_MESSAGES
    assert server.entries == MAX_BATCH_MESSAGES
    assert server.strikes == 0


def test_large_frames_of_unknown_types_cost_strikes_and_small_ones_none() -> None:
    receiver = session(Side.SERVER, SessionState.OPEN)
    for _ in range(10):
        receiver.receive(pack_map({"type": "from_the_future", "data": b"x" * 1000}))
    assert receiver.strikes == 0
    for _ in range(MAX_STRIKES):
        assert not receiver.closed
        receiver.receive(pack_map({"type": "from_the_future", "data": b"x" * 1_000_000}))
    assert receiver.closed
    assert receiver.close_reason == "unknown_message"


def test_a_client_takes_what_its_farm_sends_however_much_it_is() -> None:
    receiver = Session(Side.CLIENT)
    receiver.receive(msgpack.packb({"type": "from_the_future", "x": [0] * 100_000}))
    assert [error.code for error in errors(receiver)] == ["unknown_message"]
