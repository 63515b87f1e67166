"""A stream of chunks into a file, hashed on the way, at the cost of one block of memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiofiles
from aiofiles.threadpool.binary import AsyncFileIO

from protocol.digests import new_hasher
from protocol.tasks import BlobRef
from protocol.wording import sized
from storage.errors import BlobTooLarge, disk_errors

BLOCK_BYTES: Final = 1024 * 1024
"""Written and hashed at once, in worker threads: small chunks do not pay for a thread each."""


async def spool(file_path: Path, chunks: AsyncIterator[bytes], max_bytes: int | None = None) -> BlobRef:
    """Write the chunks to the file and sync it; return their digest and size.

    Raises: BlobTooLarge beyond ``max_bytes``; Unavailable if the disk refuses; whatever ``chunks`` raises. The file is
        left to the caller, to be named or removed.
    """
    hasher, size_bytes = new_hasher(), 0
    # Unbuffered: blocks are large, and a buffer would try its luck on a full disk once more when it is closed.
    async with aiofiles.open(file_path, "wb", buffering=0) as file:
        async for block in _blocks(chunks):
            size_bytes += len(block)
            if max_bytes is not None and size_bytes > max_bytes:
                raise BlobTooLarge(
                    f"the blob is larger than the {sized(max_bytes)} that are allowed; send a smaller one"
                )
            with disk_errors(file_path.parent):
                await asyncio.gather(_write_all(file, block), asyncio.to_thread(hasher.update, block))
        with disk_errors(file_path.parent):
            await asyncio.to_thread(os.fsync, file.fileno())
    return BlobRef(digest=hasher.hexdigest(), size_bytes=size_bytes)


async def _write_all(file: AsyncFileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[await file.write(rest) :]


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks to blocks of at least ``BLOCK_BYTES``, the last one excepted."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    async for chunk in chunks:
        waiting.append(chunk)
        waiting_bytes += len(chunk)
        if waiting_bytes >= BLOCK_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            waiting_bytes = 0
    if waiting:
        yield b"".join(waiting)
