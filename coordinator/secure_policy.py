"""The collection policy of a secure sum: who may still deliver is fixed early, and a majority of them must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coordinator.follows import Follows
from coordinator.in_flight import StepParts
from protocol.recipe import Recipe


@dataclass(frozen=True, slots=True)
class SecureCollection:
    """S: the clients whose masked updates are here when all are, or once the others have dropped out. s_k = 1.

    A majority of the round's parts must be left: that is the threshold of the shares. What the others had is owed to
    the next round. With S fixed, those in it reveal what is left of the masks on

        sum over S of  n_k d_k  =  sum over S of (masked update of k)  -  masks,    modulo 2**bits,

    and the version is the outer optimizer's step along that sum over the samples of S.

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4.
    """

    recipe: Recipe
    brings_updates: ClassVar[bool] = True
    lets_finish: ClassVar[bool] = False
    counts_late: ClassVar[bool] = False
    works_ahead: ClassVar[bool] = False
    hands_out: ClassVar[bool] = False
    counts_samples: ClassVar[bool] = True
    is_optional: ClassVar[bool] = False
    is_the_work: ClassVar[bool] = True
    brings_outputs: ClassVar[bool] = False

    def title(self, number: int) -> str:
        """Return what a step is called."""
        return f"round {number}"

    def scale(self, staleness: int) -> float:
        """Return 1: nothing is stale."""
        return 1.0

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Commit when nobody is left who may deliver."""
        is_over = not parts.held and not parts.dormant
        return Follows.COMMIT if is_over and len(parts.delivered) >= threshold_of(parts) else None

    def enough_at(self, parts: StepParts) -> float | None:
        """Return None: who has dropped out is asked of the clock elsewhere (``coordinator.secure_steps``)."""
        return None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Commit with a threshold of clients, or fail."""
        return Follows.COMMIT if len(parts.delivered) >= threshold_of(parts) else Follows.FAIL

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """Nobody begins before the round opens."""
        return False


def threshold_of(parts: StepParts) -> int:
    """Return how many clients must be left: a majority of the round's, whether they hold their parts still or not."""
    return parts.count // 2 + 1
