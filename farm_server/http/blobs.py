"""Blobs: immutable bytes by digest, up and down, each in one request. ``uploads`` has those in parts."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from farm_server.http.access import ANY_TOKEN, BlobsDep, CallersDep, TrafficDep
from farm_server.http.bulk import BulkFile, incoming

router = APIRouter(prefix="/v1/blobs", tags=["blobs"], dependencies=ANY_TOKEN)

DigestPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="BLAKE3, lowercase hexadecimal.")]


@router.head("/{digest}", summary="Is the blob here, and how large is it?", response_class=Response)
@router.get("/{digest}", summary="Fetch a blob (Range and If-None-Match are understood)", response_class=Response)
async def fetch(
    digest: DigestPath, request: Request, blobs: BlobsDep, traffic: TrafficDep, callers: CallersDep
) -> Response:
    """Serve the file. Its ETag is its digest: it can be cached for ever."""
    found = await blobs.find(digest)
    if isinstance(found, bytes):
        return Response(found, media_type="application/octet-stream")
    headers = {"etag": f'"{digest}"', "cache-control": "private, max-age=31536000, immutable"}
    if digest in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return BulkFile(str(found), traffic, callers.client_of(request), headers)


@router.put(
    "/{digest}", summary="Upload a blob in one request", status_code=HTTPStatus.CREATED, response_class=Response
)
async def upload(
    digest: DigestPath, request: Request, blobs: BlobsDep, traffic: TrafficDep, callers: CallersDep
) -> Response:
    """Store the body: 201 when it is new, 200 when it was here. 422 if it does not hash to its name.

    Nothing is kept of a body that is cut; larger blobs are better sent in parts.
    """
    said = request.headers.get("content-length")
    body = incoming(request, traffic, callers.client_of(request))
    size_bytes = await blobs.store(digest, None if said is None else int(said), body)
    if size_bytes is None:
        return Response(status_code=HTTPStatus.OK)
    await blobs.stored_by(callers.owner_of(request), digest, size_bytes)
    return Response(status_code=HTTPStatus.CREATED)
