"""What moved between this machine and the farm, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ByteSize


@dataclass(slots=True)
class Tally:
    """Counts bytes of blobs, those inside messages too, and no headers. ``..._again_bytes`` had moved before."""

    sent_bytes: int = 0
    sent_again_bytes: int = 0
    """Sent, lost at a cut before the farm had kept them, and sent again."""
    received_bytes: int = 0
    received_again_bytes: int = 0

    def in_words(self) -> str:
        """Say it in a line."""
        fetched = f"{size_in_words(self.received_bytes)} fetched ({size_in_words(self.received_again_bytes)} again)"
        return f"moved: {fetched}; {size_in_words(self.sent_bytes)} sent ({size_in_words(self.sent_again_bytes)} again)"


def size_in_words(size_bytes: int) -> str:
    """Return a size such as ``1.5 GiB``."""
    return ByteSize(size_bytes).human_readable(separator=" ")
