"""A map: a function of the task's code over each item of its data; its outputs are the results, and nothing is trained.

Items are counted from 0 in the order of the data: an item's place is its *position*. A part of a map is a run of
consecutive items, and its outputs are one blob (``protocol.outputs``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field, model_validator

from protocol.bounds import Bytes, Count, Id, Interval, Positive
from protocol.digests import Digest
from protocol.frozen import Frozen

MAX_PART_ITEMS: Final = 2**20
"""Items of one part."""
MAX_PART_BYTES: Final = 256 * 1024**2
"""What the outputs of one part may take together."""
MAX_OUTPUT_BYTES: Final = 16 * 1024**2
"""What the output of one item may take."""
MAX_LISTED: Final = 1000
"""Parts of one list."""
FAILED_ITEMS: Final = "failed_items"
"""The metric of a part's result that says how many of its outputs are errors."""
PART_SECONDS: Final = 2.0
"""How long a client works on a part, by default."""


class OnError(StrEnum):
    """What becomes of a map with an item for which its function raises."""

    STOP = "stop"
    """The task fails, and its error names the item."""
    SKIP = "skip"
    """The item's output is an error with its traceback, and the map goes on."""


class MapPlan(Frozen):
    """How a map is cut into parts, and what an item that fails does to it."""

    part_items: int | None = Field(default=None, ge=1, le=MAX_PART_ITEMS)
    """Items of a part; where absent, as many as a client does in ``part_seconds``, by its measured speed."""
    part_seconds: Interval = PART_SECONDS
    on_error: OnError = OnError.SKIP
    batch_items: int = Field(default=1, ge=1, le=MAX_PART_ITEMS)
    """Items that ``map_batch`` is given at once. A client that nobody has measured begins with so many."""

    @model_validator(mode="after")
    def _has_whole_batches(self) -> MapPlan:
        if self.part_items is not None and self.part_items % self.batch_items:
            raise ValueError(
                f"part_items, which is {self.part_items}, must be a multiple of batch_items, {self.batch_items}: an "
                "item is in the same batch then, whoever has it"
            )
        return self


class OutputView(Frozen):
    """The outputs of the items ``position`` to ``position`` + ``items``: fetch them from /v1/blobs."""

    position: Count
    items: Positive
    digest: Digest
    size_bytes: Bytes


class FailedItemView(Frozen):
    """An item that has no output: executors ended on it, on these clients; ``error`` says how the last one did."""

    position: Count
    error: str
    clients: tuple[str, ...] = ()


class OutputList(Frozen):
    """GET /v1/tasks/{id}/outputs: what there is from the item ``start`` on, without a gap, in order.

    ``outputs``: parts, from the one on that has that item. ``failed``: the items between them that have no output.
    ``items``: how many the map has. ``is_over``: the task has ended, so that no more outputs come.
    """

    task_id: Id
    outputs: tuple[OutputView, ...] = Field(default=(), max_length=MAX_LISTED)
    failed: tuple[FailedItemView, ...] = Field(default=(), max_length=MAX_LISTED)
    items: Count
    is_over: bool

    @property
    def entries(self) -> list[OutputView | FailedItemView]:
        """Return the parts, and the items that failed, in one order."""
        return sorted([*self.outputs, *self.failed], key=lambda one: one.position)

    @property
    def end(self) -> int | None:
        """Return the position behind the last of them; None if there is none."""
        ends = [part.position + part.items for part in self.outputs[-1:]]
        return max([*ends, *(item.position + 1 for item in self.failed[-1:])], default=None)
