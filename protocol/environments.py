"""The task environments of a client: which it has, and whether it would install others."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from protocol.digests import Digest
from protocol.frozen import Frozen

MAX_ENVIRONMENTS: Final = 64
"""How many a client names, the last used first; one that is not named is offered as if it had to be installed."""


class Environments(Frozen):
    """What a client has of environments, each by the digest of its lock (``protocol.locks``)."""

    built: tuple[Digest, ...] = Field(default=(), max_length=MAX_ENVIRONMENTS)
    installs: bool = False
    """Whether its owner lets it install what a task's lock names."""

    def allow(self, digest: str) -> bool:
        """Whether a task with this environment can run there: at once, or after an installation."""
        return self.installs or digest in self.built


NO_ENVIRONMENTS: Final = Environments()
"""Of a client that says nothing of them."""
