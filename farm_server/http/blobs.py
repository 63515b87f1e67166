"""Blobs: immutable bytes by digest, up and down, each in one request. ``uploads`` has those in parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from farm_server.environment.disk_space import Promise
from farm_server.farm import Farm
from farm_server.http.access import ANY_TOKEN, FarmDep
from farm_server.http.bulk import BulkFile, client_of, hoarder_of, incoming
from protocol.errors import Unavailable
from storage.errors import BlobTooLarge

router = APIRouter(prefix="/v1/blobs", tags=["blobs"], dependencies=ANY_TOKEN)

_YOUNG_SECONDS: Final = 1.0
"""To renew a blob costs a sync: once is enough for all the ranges of a download."""

DigestPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="BLAKE3, lowercase hexadecimal.")]


@router.head("/{digest}", summary="Is the blob here, and how large is it?", response_class=Response)
@router.get("/{digest}", summary="Fetch a blob (Range and If-None-Match are understood)", response_class=Response)
async def fetch(digest: DigestPath, request: Request, farm: FarmDep) -> Response:
    """Serve the file. Its ETag is its digest: it can be cached for ever."""
    if (in_memory := farm.inline.pinned(digest)) is not None:  # a version that is not durable yet
        return Response(in_memory, media_type="application/octet-stream")
    path = farm.blobs.path(digest)
    if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
        # who asks for it may rely on it in a moment: it counts as just stored
        await asyncio.to_thread(farm.blobs.renew, digest)
    headers = {"etag": f'"{digest}"', "cache-control": "private, max-age=31536000, immutable"}
    if digest in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return BulkFile(str(path), farm, client_of(request, farm), headers)


@router.put(
    "/{digest}", summary="Upload a blob in one request", status_code=HTTPStatus.CREATED, response_class=Response
)
async def upload(digest: DigestPath, request: Request, farm: FarmDep) -> Response:
    """Store the body: 201 when it is new, 200 when it was here. 422 if it does not hash to its name.

    Nothing is kept of a body that is cut; larger blobs are better sent in parts.
    """
    size_bytes = _announced(farm, request)
    await farm.hoards.make_room(size_bytes or 0)
    if (reason := farm.not_ready()) is not None:
        raise Unavailable(reason)
    with farm.room.promised(size_bytes) as promise:
        async with incoming(request, farm) as chunks:
            if await asyncio.to_thread(farm.blobs.renew, digest):
                async for chunk in chunks:
                    promise.took(len(chunk))  # an answer before the end of the body would break the connection
                farm.hoards.used([digest])
                return Response(status_code=HTTPStatus.OK)
            ref = await farm.blobs.put_stream(digest, _kept(chunks, promise), farm.settings.max_blob_bytes)
    await farm.hoards.stored(hoarder_of(request, farm), digest, ref.size_bytes)
    return Response(status_code=HTTPStatus.CREATED)


async def _kept(chunks: AsyncIterator[bytes], promise: Promise) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        promise.took(len(chunk))
        yield chunk


def _announced(farm: Farm, request: Request) -> int | None:
    """Return how long the body is, if it says. Raises: BlobTooLarge."""
    said, limit = request.headers.get("content-length"), farm.settings.max_blob_bytes
    if said is not None and int(said) > limit:
        raise BlobTooLarge(f"the blob is larger than the {limit} bytes that are allowed; send a smaller one")
    return int(said) if said is not None else None
