"""How much a request's head may be: the request line and the headers, as they come. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from farm_server.edge.refusal import Refusal

MAX_LINE_BYTES: Final = 8000
"""A request line or a header; the WebSocket library takes 8192 with everything around it."""
MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 16 * 1024


class HeadTooLarge(Exception):  # it ends the parser's run, and is not an error of this farm's
    """Raised out of the parser's callbacks."""


class Head:
    """Counts what one head brings. ``refusal`` is set once that is too much."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.begin()

    def begin(self) -> None:
        """Count a new head."""
        self._raw_bytes = 0
        self._url_bytes = 0
        self._headers = 0
        self._header_bytes = 0

    def raw(self, size_bytes: int) -> None:
        """Count bytes that came while the head was open: the parser reports one endless header only at its end."""
        self._raw_bytes += size_bytes
        if self._raw_bytes > MAX_HEAD_BYTES:
            self._refuse(f"the head of the request is over {MAX_HEAD_BYTES} bytes")

    def url(self, size_bytes: int) -> None:
        """Count bytes of the request line. Raises: HeadTooLarge."""
        self._url_bytes += size_bytes
        if self._url_bytes > MAX_LINE_BYTES:
            self._refuse(f"the address is over {MAX_LINE_BYTES} bytes", HTTPStatus.REQUEST_URI_TOO_LONG)
            raise HeadTooLarge

    def header(self, name: bytes, value: bytes) -> None:
        """Count a header. Raises: HeadTooLarge."""
        self._headers += 1
        size_bytes = len(name) + len(value) + len(b": \r\n")
        self._header_bytes += size_bytes
        if self._headers > MAX_HEADERS:
            self._refuse(f"there are over {MAX_HEADERS} headers")
        elif size_bytes > MAX_LINE_BYTES:
            self._refuse(f"a header is over {MAX_LINE_BYTES} bytes")
        elif self._header_bytes > MAX_HEAD_BYTES:
            self._refuse(f"the headers are over {MAX_HEAD_BYTES} bytes")
        if self.refusal is not None:
            raise HeadTooLarge

    def _refuse(self, what: str, status: HTTPStatus = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) -> None:
        self.refusal = Refusal(status, "request_too_large", f"{what}; send less")
