"""Uploading a task's blobs: several at once, large ones in parts, and of each only what the farm lacks.

An upload that was cut, by Ctrl-C too, goes on when the same blobs are uploaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from farm_client.sdk.api import FarmApi
from farm_client.sdk.blocking_transfers import Forward, carry
from farm_client.transfer.carrier import Carrier, in_parallel
from farm_client.transfer.source import Content, size_of
from farm_client.transfer.upload import UploadListener, ignore_waiting
from farm_client.transfer.upload import upload as upload_blob

PARALLEL: Final = 4

Advance = Callable[[int], None]
"""Called with how many more bytes are done."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload came to. What the farm held already is not sent again."""

    blobs: int
    sent_blobs: int
    sent_bytes: int


def upload(
    api: FarmApi,
    blobs: Mapping[str, Content],
    advance: Advance = lambda _: None,
    waits: Callable[[str | None], None] = ignore_waiting,
) -> Uploaded:
    """Bring all ``blobs`` (by digest) to the farm. ``waits`` is told why one waits for its turn, and None when it came.

    Raises: the first blob's error (DigestMismatch if a file changed meanwhile, Unavailable if the farm's disk is
        full, FarmUnreachable); the rest is then not begun.
    """

    async def send_all(carrier: Carrier) -> Uploaded:
        sent = dict.fromkeys(blobs, False)

        async def send(digest: str) -> None:
            forward = Forward(advance)
            sent[digest] = await upload_blob(carrier, digest, blobs[digest], UploadListener(meter=forward, waits=waits))
            forward(size_of(blobs[digest]))

        await in_parallel(blobs, PARALLEL, send)
        return Uploaded(len(blobs), sum(sent.values()), carrier.tally.sent_bytes)

    return carry(api, send_all)
