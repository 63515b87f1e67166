"""Where in a map the item is that ends executors: a part that did is given out in halves, until one batch is left.

Source: Dean and Ghemawat, "MapReduce", OSDI 2004, section 4.6: a record that ended two workers is skipped, which the
workers name with their last words. Hadoop's ``SkipBadRecords`` finds it by halving, as here: an executor may have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from coordinator.evidence import DEATHS

ENDED_ON_ITS_ITEMS: Final = DEATHS | {"out_of_memory", "over_bound", "hung"}
"""Codes of failures that an item may be the cause of: its executor died, or had to be ended."""
POISON_CLIENTS: Final = 2
"""An item is at fault once executors of so many clients ended on it; or of the only one, so many times."""
POISON_AT_FIRST: Final = 4
"""So many items may be at fault before any other is done."""


@dataclass(slots=True)
class Suspects:
    """What of a map ended executors and is not done yet."""

    items_found: int = 0
    """How many items were found to be at fault; since this start of the server."""
    deaths: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)
    """Stretches of items, each as its first and the one behind its last, to how often they ended whose executor."""

    def stretch_of(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the stretch that has all of these items; None if they are not suspected."""
        return next((one for one in self.deaths if one[0] <= start and stop <= one[1]), None)

    def narrow(self, start: int, stop: int, batch_items: int) -> list[tuple[int, int]]:
        """Suspect the pieces of a stretch instead of it, and return them."""
        if (known := self.stretch_of(start, stop)) is not None:
            del self.deaths[known]
        pieces = pieces_of(start, stop, batch_items)
        self.deaths.update((piece, {}) for piece in pieces)
        return pieces

    def apart(self, stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield these stretches of items, in order, cut where a suspected one begins or ends."""
        edges = {edge for one in self.deaths for edge in one}
        for start, stop in stretches:
            yield from pairwise(sorted({start, stop, *(edge for edge in edges if start < edge < stop)}))

    def clear(self, start: int, stop: int) -> None:
        """Suspect nothing more of these items: they are done."""
        for one in [one for one in self.deaths if one[0] < stop and start < one[1]]:
            del self.deaths[one]


def is_one_batch(start: int, stop: int, batch_items: int) -> bool:
    """Whether these items go to one call of the task's function."""
    return start // batch_items == (stop - 1) // batch_items


def pieces_of(start: int, stop: int, batch_items: int) -> list[tuple[int, int]]:
    """Return the pieces of a stretch of items: two halves of whole batches; of one batch, each item alone."""
    if is_one_batch(start, stop, batch_items):
        return [(item, item + 1) for item in range(start, stop)]
    first, last = start // batch_items, (stop - 1) // batch_items
    middle = (first + last + 1) // 2 * batch_items
    return [(start, middle), (middle, stop)]


def in_whole_batches(start: int, stop: int, batch_items: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield what is left of a map between two items, each part of a batch item by item.

    Others of such a batch are done, each alone; ``end`` is the number of all items.
    """
    first = min(-(-start // batch_items) * batch_items, stop)
    last = stop if stop == end else max(stop // batch_items * batch_items, first)
    yield from ((item, item + 1) for item in range(start, first))
    if first < last:
        yield first, last
    yield from ((item, item + 1) for item in range(last, stop))


def is_at_fault(deaths: Mapping[str, int], able: Collection[str]) -> bool:
    """Whether items ended executors on enough clients; ``able``: all that could try them, busy or resting.

    ``deaths``: how often on which client; 0 of one whose word did not count then.
    """
    if sum(1 for times in deaths.values() if times) >= POISON_CLIENTS:
        return True
    return max(deaths.values(), default=0) >= POISON_CLIENTS and deaths.keys() >= set(able)


def is_hopeless(failed: int, done: int) -> bool:
    """Whether so many items end executors that it is no single one's fault; ``done``: items that have an output."""
    return failed >= POISON_AT_FIRST and failed > done
