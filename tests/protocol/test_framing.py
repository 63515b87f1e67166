from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedFrame, OversizedFrame
from protocol.framing import FrameDecoder, pack_frame
from protocol.limits import INLINE_BYTES

MAPS = [{"type": "run", "n": 1}, {}, {"weights": bytes(300)}, {"nested": {"list": [1, 2.5, None, "text"]}}]


def test_frames_survive_being_fed_one_byte_at_a_time() -> None:
    decoder = FrameDecoder()
    stream = b"".join(pack_frame(m) for m in MAPS)
    assert [frame for byte in stream for frame in decoder.feed(bytes([byte]))] == MAPS
    assert decoder.pending_bytes == 0


@given(st.lists(st.integers(0, 400), max_size=6))
def test_frames_survive_any_cut(cuts: list[int]) -> None:
    stream = b"".join(pack_frame(m) for m in MAPS)
    bounds = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    decoder = FrameDecoder()
    got = [f for start, stop in itertools.pairwise(bounds) for f in decoder.feed(stream[start:stop])]
    assert got == MAPS


def test_the_layout_on_the_wire() -> None:
    assert pack_frame({"a": 1}) == b"\x00\x00\x00\x04\x81\xa1a\x01"


def test_a_frame_of_inline_bytes_passes() -> None:
    big = {"update": bytes(INLINE_BYTES)}
    assert FrameDecoder().feed(pack_frame(big)) == [big]


def test_a_cut_stream_shows_in_the_pending_bytes() -> None:
    decoder = FrameDecoder()
    frame = pack_frame({"a": 1})
    assert decoder.feed(frame[:-1]) == []
    assert decoder.pending_bytes == len(frame) - 1


def test_an_oversized_length_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(OversizedFrame, match="4294967295"):
        FrameDecoder().feed(b"\xff\xff\xff\xff")
    with pytest.raises(OversizedFrame):
        pack_frame({"a": bytes(100)}, max_bytes=50)


def test_a_body_that_is_no_map_is_refused() -> None:
    with pytest.raises(MalformedFrame, match="must be a map"):
        FrameDecoder().feed(b"\x00\x00\x00\x01\x90")


@given(st.binary(max_size=64))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    with contextlib.suppress(MalformedFrame, OversizedFrame):
        FrameDecoder(max_bytes=32).feed(data)
