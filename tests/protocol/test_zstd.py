from __future__ import annotations

import io
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedTensors
from protocol.zstd import LARGEST_WINDOW_LOG, MAGIC, is_wrapped, unwrap, unwrap_bytes, wrap, wrap_bytes, zstd

MIB = 1 << 20


def noise(count: int) -> bytes:
    return random.Random(7).randbytes(count)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=2000).filter(lambda data: not is_wrapped(data)), st.integers(1, 500))
def test_what_is_wrapped_comes_back(data: bytes, times: int) -> None:
    frame = wrap_bytes(data * times)
    assert len(frame) <= len(data) * times
    assert is_wrapped(frame) == (len(frame) < len(data) * times)
    assert unwrap_bytes(frame, len(data) * times) == data * times


def test_files_larger_than_a_piece_stream_through() -> None:
    data = noise(1000) * 5000
    frame, back = io.BytesIO(), io.BytesIO()
    assert wrap(io.BytesIO(data), frame)
    frame.seek(0)
    assert unwrap(frame, back, len(data)) == len(data)
    assert back.getvalue() == data


def test_what_does_not_become_smaller_stays_as_it_is() -> None:
    data = noise(10_000)
    assert wrap_bytes(data) is data


def test_a_large_file_of_noise_is_given_up_early() -> None:
    source = io.BytesIO(noise(MIB) * 40)  # a window of 2 MiB finds the repetition...
    assert wrap(source, io.BytesIO())
    source = io.BytesIO(noise(40 * MIB))  # ... and finds none here
    assert not wrap(source, io.BytesIO())
    assert source.tell() < 20 * MIB


def test_a_bomb_is_stopped_at_the_limit() -> None:
    bomb = zstd.compress(bytes(50 * MIB))
    assert len(bomb) < 10_000
    target = io.BytesIO()
    with pytest.raises(MalformedTensors, match="more than the 1000000 bytes"):
        unwrap(io.BytesIO(bomb), target, 1_000_000)
    assert len(target.getvalue()) <= 1_000_000


def test_exactly_the_limit_is_allowed() -> None:
    data = bytes(3 * MIB)
    assert unwrap_bytes(zstd.compress(data), len(data)) == data
    with pytest.raises(MalformedTensors):
        unwrap_bytes(zstd.compress(data), len(data) - 1)


def test_a_frame_may_not_ask_for_much_memory() -> None:
    options = {zstd.CompressionParameter.window_log: LARGEST_WINDOW_LOG + 4}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(noise(MIB)) + compressor.flush()
    with pytest.raises(MalformedTensors, match="no zstd frame that can be read"):
        unwrap_bytes(frame, MIB)


def test_every_cut_and_anything_appended_is_refused() -> None:
    frame = zstd.compress(b"tensor" * 100)
    for length in range(4, len(frame)):
        with pytest.raises(MalformedTensors):
            unwrap_bytes(frame[:length], 10_000)
    for rest in (b"\0", frame):
        with pytest.raises(MalformedTensors, match="after its zstd frame"):
            unwrap_bytes(frame + rest, 10_000)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_after_the_magic_is_refused_or_decodes(data: bytes) -> None:
    with suppress(MalformedTensors):
        assert len(unwrap_bytes(MAGIC + data, 1000)) <= 1000
