"""What an executor begins unasked: the round after one that was all its own, while the order for it is on its way.

It begins on the version that the farm makes of that round's update alone; ``speculation.py`` has how its steps meet
the order, and how they are undone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from farm_client.executor.held_weights import HeldWeights
from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.messages import Run
from farm_client.executor.outcome import StepsOutcome
from farm_client.executor.speculation import MOST_MISSES, Before, Speculation, guessed


class Guesses:
    """Those of one task."""

    def __init__(self, tensors: ModelTensors, weights: HeldWeights, are_allowed: Callable[[], bool]) -> None:
        """``are_allowed``: whether one client's update may make the task's next version by itself."""
        self._tensors = tensors
        self._weights = weights
        self._are_allowed = are_allowed
        self.next: Run | None = None
        """What may be begun, on the weights that are held."""
        self._before: Before | None = None
        self._copies: TensorMap = {}
        self._written: TensorMap = {}
        """Memory of what the last guess had to copy, for the next one; an order comes when the update is written."""
        self._misses = 0

    def begin(self, speculation: Speculation, loop: InnerLoop | None) -> None:
        """Begin the next one, whose steps change the kept ``loop``. Raises: memory errors."""
        self.next = None
        self._before = Before.of(loop, self._tensors, self._copies)
        self._copies = self._before.copies
        speculation.holds = self._weights.is_held

    def hit(self) -> None:
        """Note that an order adopted it."""
        self._before, self._misses = None, 0
        self._weights.confirm()

    def undo(self, loop: InnerLoop | None, *, is_wrong: bool) -> InnerLoop | None:
        """Put back what it has changed beside the weights, which each order sets; return the loop that is kept now.

        One that is wrong counts.
        """
        self._misses += is_wrong
        if self._before is None:
            return loop
        loop, self._before = self._before.restore(), None
        self._copies = {}  # they are the loop's now
        return loop

    def follow(self, order: Run, outcome: StepsOutcome) -> tuple[StepsOutcome, Callable[[], str]] | None:
        """Hold what follows from a whole round, if an order that is likely to come can begin with that; None if not.

        Returns the outcome apart from what is held now, and what computes the held version's digest on any thread.
        """
        if outcome.trained is None or not order.upcoming or self._misses >= MOST_MISSES or not self._are_allowed():
            return None
        digest = None
        with suppress(RuntimeError, MemoryError):  # for want of memory: then it waits for its order
            written = outcome.apart(self._written)
            self._written = written.trained.update if written.trained else {}
            digest = self._weights.go_on(outcome.trained.update, outcome.samples)
        if digest is None:
            return None
        self.next = guessed(order)
        return written, digest
