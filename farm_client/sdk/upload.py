"""Uploading a task's blobs: ask first which ones the farm holds, then send the others, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sdk.api import FarmApi

PARALLEL: Final = 4
CHUNK_BYTES: Final = 1024 * 1024

Content = bytes | Path
"""A blob's bytes, or the file that holds them."""
Advance = Callable[[int], None]
"""Told how many more bytes are done; called from several threads."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload came to. Blobs that the farm held already are not sent again."""

    blobs: int
    sent_blobs: int
    sent_bytes: int


def size_of(content: Content) -> int:
    """Return the blob's size in bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def upload(api: FarmApi, blobs: Mapping[str, Content], advance: Advance = lambda _: None) -> Uploaded:
    """Bring all ``blobs`` (by digest) to the farm.

    Raises: the first blob's error (DigestMismatch if a file changed meanwhile, Unavailable if the farm's disk is
    full, FarmUnreachable); the rest is then not begun.
    """

    def send_if_missing(digest: str) -> int:
        content = blobs[digest]
        if api.has_blob(digest):
            advance(size_of(content))
            return 0
        api.put_blob(digest, size_of(content), _chunks(content, advance))
        return 1

    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload")
    try:
        sent = dict(zip(blobs, pool.map(send_if_missing, blobs), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    return Uploaded(
        blobs=len(blobs),
        sent_blobs=sum(sent.values()),
        sent_bytes=sum(size_of(blobs[digest]) for digest, was_sent in sent.items() if was_sent),
    )


def _chunks(content: Content, advance: Advance) -> Iterator[bytes]:
    if isinstance(content, bytes):
        advance(len(content))
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            advance(len(chunk))
