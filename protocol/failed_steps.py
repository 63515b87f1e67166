"""What is kept of a step in which a task's code failed: how much, and of which failures.

The file is a tensor file that the executor writes and ``farm pull TASK --failed`` takes apart; docs/protocol.md has its
layout. Whoever moves it looks at its size alone.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.bounds import Bytes, Text
from protocol.digests import Digest
from protocol.frozen import Frozen

MOST_KEPT: Final = 3
"""Failed steps of one task, each with another line."""
METADATA_KEY: Final = "failure"
BATCH_PREFIX: Final = "batch/"
_TIMES_WEIGHTS: Final = 4
_ALWAYS_BYTES: Final = 256 * 1024**2
_LONGEST_LINE_CHARS: Final = 200
_PLACE: Final = re.compile(r"[^:\n]+:\d+(, in [^:\n]+)?(?=: )")


class FailedStepView(Frozen):
    """A step of a task in which its code failed: fetch the file with state and batch from /v1/blobs.

    ``line`` says where; no two of a task have the same.
    """

    line: Text
    digest: Digest
    size_bytes: Bytes


def largest_failed_step_bytes(weights_bytes: int) -> int:
    """Return how large the file of one may be: four times the model's weights, and 256 MiB in any case.

    Adam's state and the weights are three times the weights, and what an update codec keeps back is a fourth.
    """
    return max(_TIMES_WEIGHTS * weights_bytes, _ALWAYS_BYTES)


def error_line(message: str) -> str:
    """Return what two failures with the same cause have in common: the place in the code, ``file:line, in function``.

    Of a message that names no place it is the message, without its numbers: they are the step's, or the loss's.
    """
    place = _PLACE.match(message)
    line = place[0] if place else re.sub(r"\d+", "N", message.partition("\n")[0])
    return line[:_LONGEST_LINE_CHARS]
