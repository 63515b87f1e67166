"""The pre-flight check: whether this machine can take an assignment, before anything is fetched or started."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Assign, RejectCode
from protocol.wording import sized


@dataclass(frozen=True, slots=True)
class Standing:
    """What this machine can take now. ``ram_free_bytes`` is None where the task already has its executor."""

    free_slots: int
    ram_free_bytes: int | None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why not."""

    code: RejectCode
    message: str


def refusal(assign: Assign, standing: Standing) -> Rejection | None:
    """Return why the assignment must be handed back, or None if it will fit."""
    if standing.draining:
        return Rejection(RejectCode.DRAINING, "this client is leaving")
    if standing.free_slots <= 0:
        return Rejection(RejectCode.BUSY, "this client holds as many assignments as it has slots")
    needed, free = assign.task.needed_ram_bytes, standing.ram_free_bytes
    if free is not None and needed > free:
        return Rejection(RejectCode.DOES_NOT_FIT, f"needs {sized(needed)} of memory and {sized(free)} are free to lend")
    return None
