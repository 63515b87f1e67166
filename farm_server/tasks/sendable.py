"""Whether a task can be told to anybody at all: what can't be packed would throw out each client that is offered it."""

from __future__ import annotations

from typing import Final

from coordinator.offers import brief
from protocol.errors import FarmError, InvalidTask
from protocol.packing import pack_map
from protocol.tasks import TaskSpec

_ANY_ID: Final = "a" * 8


def check_sendable(spec: TaskSpec) -> None:
    """Write the specification as clients, the ledger and researchers will get it. Raises: InvalidTask if that fails.

    The shards are left out: there may be very many of them, and they hold nothing but bounded numbers and digests.
    """
    try:
        pack_map(brief(_ANY_ID, spec).model_dump())
        spec.model_dump_json(exclude={"dataset"})
    except FarmError as error:
        raise InvalidTask(f"no client could be told of this task: {error.message}") from error
    except ValueError as error:  # pydantic's error for what can't be written is one
        raise InvalidTask(f"this task can't be written as JSON: {error}") from error
