"""Blobs: immutable bytes by digest, up and down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from prometheus_client import Counter
from starlette.types import Message, Receive, Scope, Send

from farm_server.farm import Farm
from farm_server.http.access import ANY_TOKEN, FarmDep
from protocol.errors import Unavailable
from storage.errors import BlobTooLarge

router = APIRouter(prefix="/v1/blobs", tags=["blobs"], dependencies=ANY_TOKEN)

DigestPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="BLAKE3, lowercase hexadecimal.")]


class CountedFile(FileResponse):
    """A file response that counts the bytes it sends, ranges as ranges."""

    def __init__(self, path: str, sent_bytes: Counter, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers, media_type="application/octet-stream")
        self._sent_bytes = sent_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as any file response."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.body":
                self._sent_bytes.inc(len(message.get("body", b"")))
            await send(message)

        await super().__call__(scope, receive, counting)


@router.head("/{digest}", summary="Is the blob here, and how large is it?", response_class=Response)
@router.get("/{digest}", summary="Fetch a blob (Range and If-None-Match are understood)", response_class=Response)
async def fetch(digest: DigestPath, request: Request, farm: FarmDep) -> Response:
    """Serve the file. Its ETag is its digest: it can be cached for ever."""
    # who asks for it may rely on it in a moment: it counts as just stored
    await asyncio.to_thread(farm.blobs.renew, digest)
    path = farm.blobs.path(digest)
    headers = {"etag": f'"{digest}"', "cache-control": "private, max-age=31536000, immutable"}
    if digest in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return CountedFile(str(path), farm.telemetry.blob_bytes.labels("out"), headers)


@router.put("/{digest}", summary="Upload a blob", status_code=HTTPStatus.CREATED, response_class=Response)
async def upload(digest: DigestPath, request: Request, farm: FarmDep) -> Response:
    """Store the body: 201 when it is new, 200 when it was here. 422 if it does not hash to its name."""
    _check_room(farm, request)
    if await asyncio.to_thread(farm.blobs.renew, digest):
        async for _ in request.stream():
            pass  # an answer before the end of the body would break the connection
        return Response(status_code=HTTPStatus.OK)
    await farm.blobs.put_stream(digest, _counted(farm, request), farm.settings.max_blob_bytes)
    return Response(status_code=HTTPStatus.CREATED)


def _check_room(farm: Farm, request: Request) -> None:
    limit = farm.settings.max_blob_bytes
    if int(request.headers.get("content-length") or 0) > limit:
        raise BlobTooLarge(f"the blob is larger than the {limit} bytes that are allowed; send a smaller one")
    if (reason := farm.not_ready()) is not None:
        raise Unavailable(reason)


async def _counted(farm: Farm, request: Request) -> AsyncIterator[bytes]:
    received_bytes = farm.telemetry.blob_bytes.labels("in")
    async for chunk in request.stream():
        received_bytes.inc(len(chunk))
        yield chunk
