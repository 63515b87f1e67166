"""How much space the data folder's disk has left, and what may still be written to it.

Bulk stops before the disk is full, in two steps: first what comes from outside, then new versions of weights; so the
ledger, which needs little, can be written to the last. What was let in and has not come yet counts as taken.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coordinator.allowance import LeastRate
from protocol.errors import Unavailable
from protocol.wording import sized

_REFUSED_SECONDS: Final = 30.0
"""Who was refused asks again within this."""
_RESERVE_SHARE: Final = 0.25
"""Of ``min_free_bytes``: what not even a checkpoint may take."""
LOOK_BYTES: Final = 16 * 1024 * 1024
"""A body without a length is promised so much at a time."""
_LEAST_BYTES_PER_SECOND: Final = 64 * 1024
_WINDOW_SECONDS: Final = 10.0
"""A promise that is kept more slowly does not count: it would keep others out for nothing."""


class Promise:
    """Bytes that are announced and not here yet. ``more`` claims room for the next of a body without a length."""

    def __init__(self, size_bytes: int, more: Callable[[], None], now: Callable[[], float]) -> None:
        self._left_bytes = size_bytes
        self._more = more
        self._now = now
        self._since_look_bytes = 0
        self._rate = LeastRate(_LEAST_BYTES_PER_SECOND, _WINDOW_SECONDS, now())

    def took(self, size_bytes: int) -> None:
        """Note that so many of them came. Raises: Unavailable if there is no room for the next ones."""
        self._left_bytes = max(self._left_bytes - size_bytes, 0)
        self._rate.add(size_bytes, self._now())
        self._since_look_bytes += size_bytes
        if self._since_look_bytes >= LOOK_BYTES:
            self._since_look_bytes = 0
            self._more()

    def outstanding_bytes(self) -> int:
        """Return how many are still to come, as far as they seem to come."""
        return self._left_bytes if self._rate.is_kept(self._now()) else 0


class DiskSpace:
    """Watches one folder. Safe on any thread; each question is one system call."""

    def __init__(self, folder: Path, min_free_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._now = now
        self._lock = threading.Lock()
        self._promises: set[Promise] = set()
        self._refusal: tuple[float, str] | None = None
        self._other_promises: Callable[[], int] = lambda: 0

    def also_promised(self, count_bytes: Callable[[], int]) -> None:
        """Count what else was let in and has not come yet."""
        self._other_promises = count_bytes

    def lacks(self, size_bytes: int = 0) -> str | None:
        """Say that no bulk (of this size) is taken from outside now, or return None."""
        return self._short_of(self._min_free_bytes + size_bytes + self._promised_bytes())

    def spare_bytes(self) -> int:
        """Return how much may be taken from outside; 0 if nothing, or if the folder can't be used."""
        try:
            free_bytes = shutil.disk_usage(self._folder).free
        except OSError:
            return 0
        return max(free_bytes - self._min_free_bytes - self._promised_bytes(), 0)

    @contextmanager
    def promised(self, size_bytes: int | None) -> Iterator[Promise]:
        """Keep room for a body of so many bytes while it comes; None if it did not say. Raises: Unavailable."""

        def look() -> None:
            if (reason := self.lacks(LOOK_BYTES if size_bytes is None else 0)) is not None:
                raise Unavailable(reason)

        with self._lock:
            if (reason := self.lacks(LOOK_BYTES if size_bytes is None else size_bytes)) is not None:
                raise self.refuse(reason)
            promise = Promise(size_bytes or 0, look, self._now)
            self._promises.add(promise)
        try:
            yield promise
        finally:
            self._promises.discard(promise)

    def refuse(self, reason: str) -> Unavailable:
        """Return the error for something that does not fit, and remember for a while that it did not."""
        self._refusal = (self._now(), reason)
        return Unavailable(reason)

    def refused(self) -> str | None:
        """Return why something was not let in a moment ago, although smaller things may be; or None."""
        if self._refusal is None or self._now() - self._refusal[0] > _REFUSED_SECONDS:
            return None
        return self._refusal[1]

    def claim(self, size_bytes: int) -> None:
        """Check that a checkpoint of this size may be written. Raises: Unavailable."""
        if (reason := self._short_of(int(self._min_free_bytes * _RESERVE_SHARE) + size_bytes)) is not None:
            raise Unavailable(reason)

    def _promised_bytes(self) -> int:
        return sum(promise.outstanding_bytes() for promise in tuple(self._promises)) + self._other_promises()

    def _short_of(self, needed_bytes: int) -> str | None:
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            return f"the data folder {self._folder} can't be used: {error.strerror or error}; check its disk"
        if free >= needed_bytes:
            return None
        return f"only {sized(free)} are free in {self._folder} and {sized(needed_bytes)} must be; free some space"


Claim = Callable[[int], None]
"""Claims room for so many bytes. Raises: Unavailable."""
