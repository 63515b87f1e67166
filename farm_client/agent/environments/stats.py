"""What an owner sees of the environments of their machine, in a line."""

from __future__ import annotations

from protocol.frozen import Frozen
from protocol.wording import counted, sized


class EnvironmentStats(Frozen):
    """How many environments there are, what they take, and what is being installed. Bytes."""

    environments: int = 0
    size_bytes: int = 0
    installs: bool = False
    """Whether the owner lets tasks' packages be installed."""
    installing: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Say it in a line."""
        there = counted(self.environments, "environment")
        size = f", {sized(self.size_bytes)}" if self.environments else ""
        now = "".join(f"; {one}" for one in self.installing)
        return f"packages of tasks: {there}{size}; installs are {'allowed' if self.installs else 'not allowed'}{now}"
