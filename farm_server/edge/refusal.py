"""A request that is turned down before the application sees it, as an answer and as a line in the log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from protocol.errors import FarmError
from protocol.rest import ErrorBody

_log = structlog.get_logger(__name__)

_LOG_SECONDS: Final = 10.0
"""Strangers must not fill the log: one line for all refusals of so long a time."""
RETRY_SECONDS: Final = 5
"""When to come again to a server that can take nothing now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer. ``retry_seconds`` (whole, at least 1) tells when to come again, if that makes sense."""

    status: HTTPStatus
    code: str
    message: str
    retry_seconds: int | None = None

    @classmethod
    def of(cls, status: HTTPStatus, error: FarmError) -> Refusal:
        """Return the refusal that says what an error says."""
        retry_seconds = RETRY_SECONDS if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return cls(status, error.code, error.message, retry_seconds)

    @property
    def body(self) -> bytes:
        """The ``ErrorBody`` as JSON."""
        return ErrorBody(code=self.code, message=self.message).model_dump_json().encode()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's headers; the connection ends with it."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.body)).encode()),
            (b"connection", b"close"),
        ]
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_seconds is not None:
            headers.append((b"retry-after", str(self.retry_seconds).encode()))
        return headers

    def as_bytes(self) -> bytes:
        """Return the whole answer as HTTP/1.1."""
        head = b"".join(name + b": " + value + b"\r\n" for name, value in self.headers)
        return f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n".encode() + head + b"\r\n" + self.body


class RefusalLog:
    """Logs refusals in a line now and then, the first one at once: who came, what was wrong, and how many more."""

    def __init__(self) -> None:
        self._quiet_until = float("-inf")
        self._unlogged: Counter[int] = Counter()

    def note(self, refusal: Refusal, address: str, now: float) -> None:
        """Count a refusal; ``now`` is in seconds."""
        self._unlogged[refusal.status] += 1
        if now < self._quiet_until:
            return
        self._quiet_until = now + _LOG_SECONDS
        by_status = {str(int(status)): count for status, count in self._unlogged.items()}
        self._unlogged.clear()
        _log.warning("requests are refused", counts=by_status, last_from=address, last_reason=refusal.message)
