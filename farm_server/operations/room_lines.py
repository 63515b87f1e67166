"""What takes the room, in lines for the operator's terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.rest import RoomView
from protocol.wording import sized

_SHOWN: Final = 5


def room_lines(room: RoomView) -> Iterator[str]:
    """Say how much is free, what is kept, and which tasks take most."""
    yield f"disk: {sized(room.free_bytes)} free, the ledger has {sized(room.ledger_bytes)}"
    yield f"kept: {room.policy}"
    for task in room.tasks[:_SHOWN]:
        name = "".join(c if c.isprintable() else "?" for c in task.name)
        takes = f"{sized(task.blob_bytes)} of blobs, {task.rows} rows of history"
        yield f"  {task.task_id} {name} ({task.state}): {takes}"
    if room.tasks:
        yield "`farm rm TASK` removes a task that is over, `farm-server gc` what nothing needs"
