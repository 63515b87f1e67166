"""Every error answer is an ``ErrorBody``, whatever raised it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from coordinator.lifecycle import IllegalTransition
from farm_server.edge.refusal import RETRY_SECONDS
from protocol.errors import (
    Conflict,
    DigestMismatch,
    FarmError,
    InvalidTask,
    NotFound,
    ProtocolError,
    TensorError,
    Unauthorized,
    Unavailable,
)
from protocol.ranges import BadContentRange
from protocol.rest import ErrorBody
from storage.errors import BlobTooLarge

_log = structlog.get_logger(__name__)

TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
STATUS: Final[tuple[tuple[type[FarmError], HTTPStatus], ...]] = (
    (Unauthorized, HTTPStatus.UNAUTHORIZED),
    (NotFound, HTTPStatus.NOT_FOUND),
    (IllegalTransition, HTTPStatus.CONFLICT),
    (Conflict, HTTPStatus.CONFLICT),
    (InvalidTask, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TensorError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DigestMismatch, HTTPStatus.UNPROCESSABLE_ENTITY),
    (BlobTooLarge, TOO_LARGE),
    (BadContentRange, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
    (ProtocolError, HTTPStatus.BAD_REQUEST),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (FarmError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""The first class that fits gives the status."""


def install(app: FastAPI) -> None:
    """Make the app answer every error with an ``ErrorBody``."""
    for kind in (FarmError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answered)


def status_of(error: FarmError) -> HTTPStatus:
    """Return the HTTP status that an error is answered with."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def answer(status: int, code: str, message: str) -> JSONResponse:
    """Return an error answer."""
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return JSONResponse(ErrorBody(code=code, message=message).model_dump(), status, headers)


async def _answered(request: Request, error: Exception) -> JSONResponse:
    match error:
        case FarmError():
            return answer(status_of(error), error.code, error.message)
        case RequestValidationError():
            return _invalid_request(request, error)
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return answer(HTTPStatus.NOT_FOUND, NotFound.code, f"there is no {request.url.path}; see /openapi.json")
        case HTTPException():
            status = HTTPStatus(error.status_code)
            code = "request_too_large" if status == TOO_LARGE else status.name.lower()
            return answer(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
        case _:
            _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
            message = "the server failed; its log says why"
            return answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", message)


def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path"))
    code = InvalidTask.code if request.url.path == "/v1/tasks" else "invalid_request"
    return answer(HTTPStatus.UNPROCESSABLE_ENTITY, code, f"{where}: {first['msg']}" if where else first["msg"])
