"""The JSON bodies of the HTTP API about uploads: whether to send, when, and which parts of a blob."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from protocol.bounds import Bytes, Count, Seconds, Text
from protocol.frozen import Frozen
from protocol.ranges import ByteRange
from protocol.rest import View


class UploadState(StrEnum):
    """The state of an upload, as the farm answers it."""

    STORED = "stored"
    """The farm has it: nothing is to be sent."""
    WAIT = "wait"
    """Not now: ask again after ``retry_seconds``."""
    GO = "go"
    """Send the ``missing`` ranges."""


class UploadRequest(Frozen):
    """POST /v1/blobs/{digest}/upload: the first request of an upload, and the first one after any cut.

    ``wait_seconds`` is how long the answer may be held back while it would be ``wait``; it comes as soon as it is not.
    """

    size_bytes: Bytes
    wait_seconds: float = Field(default=0.0, ge=0, le=30)


class UploadReply(Frozen):
    """What to do about an upload: nothing, wait, or send parts by PATCH.

    ``missing`` are half-open ranges ``[start, end)``, at most the first 256: who has sent them all and was not told
    that the blob is stored asks again. A part has at most ``part_bytes``, and at most ``parallel`` are sent at once.
    """

    state: UploadState
    missing: tuple[ByteRange, ...] = ()
    part_bytes: Bytes = 0
    parallel: Count = 0
    ahead: Count = 0
    """While waiting: uploads that are before this one, those under way included."""
    reason: Text = ""
    """While waiting: why, in a line for people."""
    retry_seconds: Seconds = 0.0


class UploadView(View):
    """GET /v1/uploads, one each: a blob that is on its way in.

    ``state`` is receiving, checking (all is here and is being verified), waiting (for its turn), or interrupted (a part
    is here, nobody sends the rest now).
    """

    digest: str
    size_bytes: int
    received_bytes: int
    state: str
    clients: tuple[str, ...] = ()
    """Who sends it, or wants to, by their own word."""
    idle_seconds: float = 0.0
    """Since the last byte came, or since it was asked for."""
    ahead: int = 0
    reason: str = ""
