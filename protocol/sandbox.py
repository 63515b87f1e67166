"""What keeps a task's code from the rest of a volunteer's machine: the rungs of a ladder, and a client's own.

An executor runs code that a stranger wrote. How well it is shut in depends on what the machine's system offers; the
client takes the highest rung that holds there, tries to break out of it with the escape probes, and says what came of
that in ``Hello.sandbox``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator

from protocol.bounds import Natural
from protocol.frozen import Frozen


class Rung(StrEnum):
    """How well a task's code is shut in, the best first. Compare with ``holds``: these are words, not numbers."""

    STRICT = "strict"
    """Namespaces of its own, by bubblewrap, and a filter of system calls."""
    LANDLOCK = "landlock"
    """The same without namespaces: Landlock, a filter of system calls, and resource limits."""
    CONTAINER = "container"
    """Rootless Podman, started with the client's own arguments."""
    NONE = "none"
    """A process with the rights of the user who runs the client."""

    def holds(self, least: Rung) -> bool:
        """Whether this rung is ``least`` or above it."""
        return _HEIGHTS[self] >= _HEIGHTS[least]


_HEIGHTS = {rung: height for height, rung in enumerate(reversed(Rung))}


def _known(word: Any) -> Any:
    """Return ``none`` for a rung that only newer clients have: nobody here can say what it holds."""
    return Rung.NONE if isinstance(word, str) and word not in _WORDS else word


_WORDS = frozenset(Rung)


class Sandbox(Frozen):
    """A client's sandbox, as it was when the client started."""

    rung: Annotated[Rung, BeforeValidator(_known)]
    probes: Natural = 0
    """The version of the escape probes that the sandbox withstood; 0: none were run, and the rung is a mere claim."""

    @property
    def label(self) -> str:
        """What to call it in a word: its rung, with a remark where no escape probe was run on it."""
        return self.rung if self.probes or self.rung is Rung.NONE else f"{self.rung} (untried)"

    @property
    def proven(self) -> Rung:
        """The rung that the escape probes showed to hold; ``none`` where they were not run."""
        return self.rung if self.probes else Rung.NONE


def proven_rung(sandbox: Sandbox | None) -> Rung:
    """Return the rung that counts for a client that said this; ``none`` for one that is older than sandboxes."""
    return Rung.NONE if sandbox is None else sandbox.proven
