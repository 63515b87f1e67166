"""Blobs: immutable bytes by digest, up and down, each in one request. ``uploads`` has those in parts."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from farm_server.farm import Farm
from farm_server.http.access import ANY_TOKEN, FarmDep
from farm_server.http.bulk import BulkFile, client_of, incoming
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
    return BulkFile(str(path), farm, client_of(request), headers)


@router.put(
    "/{digest}", summary="Upload a blob in one request", status_code=HTTPStatus.CREATED, response_class=Response
)
async def upload(digest: DigestPath, request: Request, farm: FarmDep) -> Response:
    """Store the body: 201 when it is new, 200 when it was here. 422 if it does not hash to its name.

    Nothing is kept of a body that is cut; larger blobs are better sent in parts.
    """
    _check_room(farm, request)
    async with incoming(request, farm) as chunks:
        if await asyncio.to_thread(farm.blobs.renew, digest):
            async for _ in chunks:
                pass  # an answer before the end of the body would break the connection
            return Response(status_code=HTTPStatus.OK)
        await farm.blobs.put_stream(digest, chunks, farm.settings.max_blob_bytes)
    return Response(status_code=HTTPStatus.CREATED)


def _check_room(farm: Farm, request: Request) -> None:
    limit = farm.settings.max_blob_bytes
    if int(request.headers.get("content-length") or 0) > limit:
        raise BlobTooLarge(f"the blob is larger than the {limit} bytes that are allowed; send a smaller one")
    if (reason := farm.not_ready()) is not None:
        raise Unavailable(reason)
