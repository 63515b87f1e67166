"""How large a frame may be on one connection: what the link carries in a moment. Sans I/O.

A frame that has begun holds up every order behind it. On a link where a large one takes long, blobs go over HTTP
instead, where they hold up nobody.
"""

from __future__ import annotations

from typing import Final

LEAST_BYTES: Final = 16 * 1024
"""Never less: a request of its own costs more than so many bytes."""
MOMENT_SECONDS: Final = 0.25
"""An order may wait so long for a frame."""
_TRY_AGAIN_SECONDS: Final = 60.0
_GROWTH: Final = 4


class LinkCapacity:
    """Falls as soon as a frame took longer than a moment, and rises step by step while none does."""

    def __init__(self) -> None:
        self._bytes: int | None = None
        self._rises_at = 0.0

    def written(self, frame_bytes: int, seconds: float, now: float) -> None:
        """Record that a frame took so long to leave, or so long until it was given up."""
        if frame_bytes >= LEAST_BYTES and seconds > MOMENT_SECONDS:
            self._bytes = max(LEAST_BYTES, int(frame_bytes * MOMENT_SECONDS / seconds))
            self._rises_at = now + _TRY_AGAIN_SECONDS

    def at(self, now: float, most_bytes: int) -> int:
        """Return the limit in bytes: at most what both sides agreed on."""
        if self._bytes is not None and now >= self._rises_at:
            self._bytes *= _GROWTH
            self._rises_at = now + _TRY_AGAIN_SECONDS
        if self._bytes is None or self._bytes >= most_bytes:
            self._bytes = None
            return most_bytes
        return self._bytes
