"""What takes the room, in lines for the operator's terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.rest import RoomView

_SHOWN: Final = 5
_STEP: Final = 1024


def size_text(size_bytes: float) -> str:
    """Write a size for people: ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < _STEP:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _STEP
    return f"{size_bytes:.1f} TiB"


def room_lines(room: RoomView) -> Iterator[str]:
    """Say how much is free, what is kept, and which tasks take most."""
    yield f"disk: {size_text(room.free_bytes)} free, the ledger has {size_text(room.ledger_bytes)}"
    yield f"kept: {room.policy}"
    for task in room.tasks[:_SHOWN]:
        name = "".join(c if c.isprintable() else "?" for c in task.name)
        takes = f"{size_text(task.blob_bytes)} of blobs, {task.rows} rows of history"
        yield f"  {task.task_id} {name} ({task.state}): {takes}"
    if room.tasks:
        yield "`farm rm TASK` removes a task that is over, `farm-server gc` what nothing needs"
