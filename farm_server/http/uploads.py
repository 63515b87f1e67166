"""Uploads in parts: query what is missing, send it, and resume after any cut. docs/protocol.md has the whole story."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from farm_server.http.access import ANY_TOKEN, FARM_TOKEN, BlobsDep, CallersDep, TrafficDep, UploadsDep
from farm_server.http.blobs import DigestPath
from farm_server.http.bulk import incoming
from farm_server.http.listing import listing
from protocol.ranges import BadContentRange, ContentRange
from protocol.rest import ErrorBody
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState, UploadView

router = APIRouter(prefix="/v1/blobs", tags=["blobs"], dependencies=ANY_TOKEN)
people_router = APIRouter(prefix="/v1/uploads", tags=["blobs"], dependencies=FARM_TOKEN)

ContentRangeHeader = Annotated[str | None, Header(description="`bytes START-LAST/TOTAL`, the last byte included.")]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _errors(**said: str) -> dict[int | str, dict[str, Any]]:
    return {int(status.lstrip("_")): {"model": ErrorBody, "description": text} for status, text in said.items()}


@router.post(
    "/{digest}/upload",
    summary="Begin an upload, or ask what it still lacks",
    responses=_errors(
        _413="Larger than the farm allows.",
        _422="The size is 0, and the digest is not that of nothing.",
        _503="The disk is short, or the farm shuts down.",
    ),
)
async def ask(
    digest: DigestPath,
    asked: UploadRequest,
    request: Request,
    *,
    uploads: UploadsDep,
    blobs: BlobsDep,
    callers: CallersDep,
) -> UploadReply:
    """Say that it is stored, or to wait (with the reason), or which ranges to send. `X-Farm-Client` says who asks."""
    reply = await uploads.ask(digest, asked, callers.client_of(request))
    if reply.state is UploadState.STORED:
        blobs.used([digest])  # it was here, or others send it too
    return reply


@router.patch(
    "/{digest}",
    summary="Send a part of a blob",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    openapi_extra=_BODY,
    responses={
        201: {"description": "That was the last one: the blob is stored, and its digest is right."},
        204: {"description": "The part is kept; more is missing, or is on its way."},
        **_errors(
            _409="No such upload is open (any more); ask first.",
            _413="The part is larger than the reply to the question allowed.",
            _416="The Content-Range is missing or wrong, or the body is longer.",
            _422="All is here and does not hash to the digest; it is dropped.",
            _503="The disk refuses, or the connection was cut. What came is kept.",
        ),
    },
)
async def send(
    digest: DigestPath,
    request: Request,
    *,
    uploads: UploadsDep,
    blobs: BlobsDep,
    traffic: TrafficDep,
    callers: CallersDep,
    content_range: ContentRangeHeader = None,
) -> Response:
    """Keep the body's bytes, as many as come, at their place. Parts may come in any order, and at the same time."""
    part = ContentRange.parse(content_range)
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) != part.size_bytes:
        raise BadContentRange(f"the body has {announced} bytes and its Content-Range {part.size_bytes}; send as many")
    async with incoming(request, traffic, callers.client_of(request)) as chunks:
        stored = await uploads.receive(digest, part, chunks)
    if stored:
        await blobs.stored_by(callers.owner_of(request), digest, part.total_bytes)
    return Response(status_code=HTTPStatus.CREATED if stored else HTTPStatus.NO_CONTENT)


@people_router.get(
    "", summary="The uploads that are under way, wait, or were interrupted", response_model=list[UploadView]
)
async def uploads(uploads: UploadsDep) -> Response:
    """Return every upload that is not finished: how much is here, who sends it, and what it waits for."""
    return listing(uploads.views())
