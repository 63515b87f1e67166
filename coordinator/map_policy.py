"""The collection policy of a map: each part counts as it arrives, and the step is over when all items have.

There is one step, from the first item to the last. What has not been given out is one waiting part, of which each free
client gets a piece to its own measure; so nobody waits for anybody, and there is nothing to decide at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Final

from coordinator.follows import Follows
from coordinator.in_flight import StepParts
from protocol.maps import MAX_PART_BYTES, MAX_PART_ITEMS, MapPlan
from protocol.recipe import Recipe

TRIPS_OF_A_PART: Final = 20
"""A part lasts for so many round trips of its client's link at least: more parts would wait for their messages."""
PIECES_LEFT: Final = 2
"""Of what is left no client gets more than this share of its equal share, so that all are done at about one time."""
_AIMED_BYTES: Final = MAX_PART_BYTES // 16


@dataclass(frozen=True, slots=True)
class ItemsOnce:
    """Each item's output counts once, in whatever order parts arrive; their positions say the order of the outputs."""

    recipe: Recipe
    brings_updates: ClassVar[bool] = False
    lets_finish: ClassVar[bool] = False
    counts_late: ClassVar[bool] = False
    works_ahead: ClassVar[bool] = True
    hands_out: ClassVar[bool] = False
    counts_samples: ClassVar[bool] = True
    is_optional: ClassVar[bool] = False
    is_the_work: ClassVar[bool] = True
    brings_outputs: ClassVar[bool] = True

    def title(self, number: int) -> str:
        """Return what a step is called."""
        return "map"

    def scale(self, staleness: int) -> float:
        """Return 1: nothing is stale."""
        return 1.0

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Keep each part's outputs as they arrive."""
        return Follows.KEEP

    def enough_at(self, parts: StepParts) -> float | None:
        """Return None: only what arrives decides."""
        return None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Fail: for so long no part came."""
        return Follows.FAIL

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """There is no next step."""
        return False


@dataclass(frozen=True, slots=True)
class Measure:
    """What is known of a client when a part is cut for it; 0 where a figure was never measured.

    ``items_per_second``: its speed on this map. ``item_bytes``: what an output takes, of any client. ``round_trip``:
    of its link, in seconds.
    """

    items_per_second: float = 0.0
    item_bytes: float = 0.0
    round_trip: float = 0.0


def items_for(plan: MapPlan, measure: Measure, left: int, clients: int) -> int:
    """Return how many of the ``left`` items (1 or more) a client's next part has, where ``clients`` share them.

    A client that nobody has measured gets one batch. One that has been gets ``part_seconds`` of work, and longer parts
    over a slow link; but no more than its outputs fit one blob well, and towards the end ever less, so that no client
    has much to do when the others are done. Parts are of whole batches, but for the last one.
    Source: Polychronopoulos and Kuck, "Guided Self-Scheduling", IEEE Transactions on Computers C-36(12), 1987.
    """
    if plan.part_items is not None:
        return min(plan.part_items, left)
    if not measure.items_per_second:
        return min(plan.batch_items, left)
    seconds = max(plan.part_seconds, TRIPS_OF_A_PART * measure.round_trip)
    wanted = min(measure.items_per_second * seconds, ceil(left / (PIECES_LEFT * max(clients, 1))), MAX_PART_ITEMS)
    if measure.item_bytes:
        wanted = min(wanted, _AIMED_BYTES / measure.item_bytes)
    batches = max(round(wanted / plan.batch_items), 1)
    return min(batches * plan.batch_items, left)
