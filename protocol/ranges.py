"""Which bytes of a blob are here: sets of half-open ranges, and the ``Content-Range`` that a part of it carries."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

from protocol.errors import FarmError

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)
_TEXT_RANGE: Final = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)


class BadContentRange(FarmError):
    """The request has no usable Content-Range; write it like `bytes 0-1048575/40000000`, the last byte included."""

    code: ClassVar[str] = "bad_content_range"


class ByteRange(NamedTuple):
    """The bytes from ``start`` up to, and without, ``end``."""

    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Count its bytes."""
        return self.end - self.start

    def parts(self, part_bytes: int) -> Iterator[ByteRange]:
        """Cut it into ranges of at most ``part_bytes`` each, in order."""
        for start in range(self.start, self.end, part_bytes):
            yield ByteRange(start, min(start + part_bytes, self.end))


class ByteRanges:
    """A set of byte positions. Iterating gives its ranges in order: never empty, never touching one another.

    Adding costs a binary search, and a move of the ranges behind: fit for thousands of ranges, not for millions.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` writes: ``0-100,200-300``, half-open. Raises: ValueError."""
        found = [_TEXT_RANGE.fullmatch(part) for part in text.split(",")] if text else []
        if any(match is None for match in found):
            raise ValueError(f"{text[:80]!r} is not written like 0-100,200-300")
        return cls((int(match[1]), int(match[2])) for match in found if match is not None)

    def __str__(self) -> str:
        return ",".join(f"{start}-{end}" for start, end in self)

    def __repr__(self) -> str:
        return f"ByteRanges.parse({str(self)!r})"

    def __iter__(self) -> Iterator[ByteRange]:
        return map(ByteRange, self._starts, self._ends)

    def __len__(self) -> int:
        """Count the ranges, not the bytes."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByteRanges):
            return NotImplemented
        return (self._starts, self._ends) == (other._starts, other._ends)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def total_bytes(self) -> int:
        """Count the bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    @property
    def prefix_bytes(self) -> int:
        """Count the bytes from position 0 up to the first one that is not in the set."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, end: int) -> None:
        """Put a range into the set; one that ends before it starts, or is negative, is a ValueError."""
        if not 0 <= start <= end:
            raise ValueError(f"{start}-{end} is no range of bytes")
        if start == end:
            return
        first, after = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < after:  # these touch it: they become one
            start, end = min(start, self._starts[first]), max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def missing(self, size_bytes: int, start: int = 0) -> Iterator[ByteRange]:
        """Give the gaps between ``start`` and ``size_bytes``, in order."""
        at = start
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= size_bytes:
                break
            if at < self._starts[index]:
                yield ByteRange(at, self._starts[index])
            at = self._ends[index]
        if at < size_bytes:
            yield ByteRange(at, size_bytes)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Which bytes of a blob a request's body holds: ``start`` up to, and without, ``end``, of ``total_bytes``.

    ``str`` gives the header's value, where the last byte is included (RFC 9110, section 14.4).
    """

    start: int
    end: int
    total_bytes: int

    @classmethod
    def parse(cls, header: str | None) -> Self:
        """Read ``bytes START-LAST/TOTAL``. Raises: BadContentRange if it is absent, malformed or impossible."""
        match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
        if match is None:
            raise BadContentRange
        start, last, total_bytes = (int(number) for number in match.groups())
        if not start <= last < total_bytes:
            raise BadContentRange(f"Content-Range {match[0]!r} names no bytes of a blob of {total_bytes}")
        return cls(start, last + 1, total_bytes)

    def __str__(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.total_bytes}"

    @property
    def size_bytes(self) -> int:
        """Count its bytes."""
        return self.end - self.start
