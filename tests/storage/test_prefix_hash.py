"""The hash that follows a file which fills up: the digest of its bytes in the end, whatever was read on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from storage import prefix_hash
from storage.prefix_hash import PrefixHash

BLOCK = 16
STRIDE, AT_ONCE = 4 * BLOCK, 16 * BLOCK
DATA = bytes(range(256)) * 8


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_hash, "_BLOCK_BYTES", BLOCK)
        patch.setattr(prefix_hash, "_STRIDE_BYTES", STRIDE)
        patch.setattr(prefix_hash, "_AT_ONCE_BYTES", AT_ONCE)
        yield


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("hashed") / "data"
    path.write_bytes(DATA)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


class Reads:
    """How many bytes of the file were asked for, as the hash asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int | None = None) -> None:
        self.places: list[tuple[int, int]] = []
        preadv = os.preadv

        def counting(handle: int, buffers: list[memoryview], at: int) -> int:
            count = preadv(handle, [buffer[:at_most] for buffer in buffers], at)
            self.places.append((at, count))
            return count

        monkeypatch.setattr(os, "preadv", counting)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.places)


@given(prefixes=st.lists(st.integers(0, len(DATA)), max_size=20), size=st.integers(0, len(DATA)))
def test_however_the_file_filled_up_the_digest_is_that_of_its_bytes(
    handle: int, prefixes: list[int], size: int
) -> None:
    following = PrefixHash()
    for prefix in sorted(min(prefix, size) for prefix in prefixes):
        following.follow(handle, prefix)
    assert following.hexdigest(handle, size) == digest_bytes(DATA[:size])


def test_each_byte_is_read_once(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    for prefix in range(0, len(DATA), 7):
        following.follow(handle, prefix)
    following.hexdigest(handle, len(DATA))
    assert reads.total == len(DATA)
    assert [at for at, _ in reads.places] == sorted({at for at, _ in reads.places})


def test_less_than_a_stride_is_not_worth_a_thread_s_turn(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, STRIDE - 1)
    assert reads.total == 0
    following.follow(handle, STRIDE)
    assert reads.total == STRIDE
    following.follow(handle, 2 * STRIDE - 1)
    assert reads.total == STRIDE


def test_nobody_is_kept_for_more_than_so_many_bytes_at_once(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, len(DATA))
    assert reads.total == AT_ONCE
    following.follow(handle, len(DATA))
    assert reads.total == 2 * AT_ONCE


def test_a_prefix_that_shrinks_is_not_read_again(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads report in any order: one that knows of less comes after one that knew of more."""
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, 2 * STRIDE)
    following.follow(handle, STRIDE)
    assert reads.total == 2 * STRIDE
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)


def test_a_disk_that_gives_little_at_a_time_is_asked_again(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Reads(monkeypatch, at_most=3)
    assert PrefixHash().hexdigest(handle, 100) == digest_bytes(DATA[:100])


def test_a_file_that_was_cut_ends_the_reading_and_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(DATA[:100])
    opened = os.open(path, os.O_RDONLY)
    try:
        assert PrefixHash().hexdigest(opened, 1000) == digest_bytes(DATA[:100]) != digest_bytes(DATA[:1000])
    finally:
        os.close(opened)


def test_an_empty_file_has_the_digest_of_nothing(handle: int) -> None:
    assert PrefixHash().hexdigest(handle, 0) == digest_bytes(b"")


def test_a_second_writer_does_not_wait_for_the_one_that_hashes(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(handle: int, buffers: list[memoryview], at: int) -> int:
        entered.set()
        assert go_on.wait(30)
        return preadv(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", slow)
    following = PrefixHash()
    first = threading.Thread(target=following.follow, args=(handle, STRIDE))
    first.start()
    assert entered.wait(30)
    following.follow(handle, 2 * STRIDE)  # comes back at once, or this test hangs
    go_on.set()
    first.join()
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)


def test_a_read_that_fails_leaves_the_hash_usable(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    following = PrefixHash()
    following.follow(handle, STRIDE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"):
            following.follow(handle, 2 * STRIDE)
    following.follow(handle, 2 * STRIDE)
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)
