"""A stream into a file: all bytes, in order, named by their digest; too many, or a disk that refuses, end it."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.digests import digest_bytes
from protocol.errors import Unavailable
from storage import spool as module
from storage.errors import BlobTooLarge
from storage.spool import BLOCK_BYTES, spool


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Writes:
    """The blocks that reach the disk, ``at_most`` bytes of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int | None = None) -> None:
        self.sizes: list[int] = []
        opened = module.aiofiles.open

        def open_counting(*args: Any, **options: Any) -> Any:
            return _Opening(opened(*args, **options), self.sizes, at_most)

        monkeypatch.setattr(module.aiofiles, "open", open_counting)


class _Opening:
    def __init__(self, opening: Any, sizes: list[int], at_most: int | None) -> None:
        self._opening, self._sizes, self._at_most = opening, sizes, at_most

    async def __aenter__(self) -> Any:
        file = await self._opening.__aenter__()
        write: Callable[[memoryview], Any] = file.write

        async def counted(data: memoryview) -> int:
            self._sizes.append(len(data))
            return int(await write(data[: self._at_most]))

        file.write = counted
        return file

    async def __aexit__(self, *error: Any) -> None:
        await self._opening.__aexit__(*error)


CHUNKS: dict[str, tuple[bytes, ...]] = {
    "nothing": (),
    "empty chunks": (b"", b""),
    "one byte": (b"x",),
    "small ones": tuple(bytes([n]) * 10 for n in range(50)),
    "a block": (b"b" * BLOCK_BYTES,),
    "more than a block": (b"c" * (BLOCK_BYTES + 1), b"d"),
    "blocks in halves": (b"e" * (BLOCK_BYTES // 2),) * 5,
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_the_file_holds_what_came_and_its_name_is_told(tmp_path: Path, chunks: tuple[bytes, ...]) -> None:
    whole = b"".join(chunks)
    ref = await spool(tmp_path / "file", stream(*chunks))
    assert (ref.digest, ref.size_bytes) == (digest_bytes(whole), len(whole))
    assert (tmp_path / "file").read_bytes() == whole


async def test_small_chunks_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    await spool(tmp_path / "file", stream(*[b"x" * 1000] * 2100))
    assert len(writes.sizes) == 3  # 1049 chunks are the first that make a block
    assert writes.sizes[0] == writes.sizes[1] == 1_049_000


@pytest.mark.parametrize("at_most", [1, 7, 999])
async def test_a_disk_that_takes_less_than_it_is_given_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    Writes(monkeypatch, at_most)
    data = bytes(range(200)) * 5
    ref = await spool(tmp_path / "file", stream(data))
    assert (tmp_path / "file").read_bytes() == data
    assert ref.digest == digest_bytes(data)


@pytest.mark.parametrize("limit", [0, 1, 10])
async def test_the_limit_itself_is_allowed_and_a_byte_more_is_not(tmp_path: Path, limit: int) -> None:
    ref = await spool(tmp_path / "file", stream(b"x" * limit), max_bytes=limit)
    assert ref.size_bytes == limit
    with pytest.raises(BlobTooLarge, match="that are allowed"):
        await spool(tmp_path / "file", stream(b"x" * limit, b"y"), max_bytes=limit)


async def test_nothing_beyond_the_limit_reaches_the_disk(tmp_path: Path) -> None:
    """Who sends for ever is stopped at the limit, give or take a block, and not when the disk is full."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += BLOCK_BYTES
            yield b"x" * BLOCK_BYTES

    with pytest.raises(BlobTooLarge):
        await spool(tmp_path / "file", endless(), max_bytes=3 * BLOCK_BYTES)
    assert (tmp_path / "file").stat().st_size == 3 * BLOCK_BYTES
    assert sent == 4 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some"), (errno.EDQUOT, "quota"), (errno.EIO, "check its health")],
)
async def test_a_sync_that_fails_is_the_disks_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    """Linux tells of a failed write only once, at the sync: a blob is not stored before that was heard."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unavailable, match=advice) as refused:
        await spool(tmp_path / "file", stream(b"data"))
    assert str(tmp_path) in refused.value.message


async def test_a_stream_that_breaks_raises_its_own_error(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError(errno.ECONNRESET, "reset by peer")

    with pytest.raises(OSError, match="reset by peer") as error:
        await spool(tmp_path / "file", broken())
    assert not isinstance(error.value, Unavailable)
