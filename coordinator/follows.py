"""What follows from a collection policy's answer; ``coordinator.step_ends`` carries it out."""

from __future__ import annotations

from enum import Enum, auto


class Follows(Enum):
    """What follows when a step is complete, or has lasted for its longest time."""

    COMMIT = auto()
    """Its updates make a new version."""
    REPORT = auto()
    """Its metrics are those of the version."""
    GO_ON = auto()
    """The next round opens."""
    KEEP = auto()
    """What arrived counts now, and the step goes on until all of it has."""
    FAIL = auto()
    """The attempt failed, and is tried again."""
    SKIP = auto()
    """The task goes on without it."""
