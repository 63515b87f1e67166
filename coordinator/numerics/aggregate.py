"""The interface of an aggregate, which makes one update of a round's many: the recipe chooses which.

``weighted_mean`` implements it, and all that build on ``votes``; tests/contract/test_aggregates.py holds every
implementation to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

from torch import Tensor

from protocol.codecs import Reader
from protocol.errors import FarmError

CENTRE: Final = "centre."
"""What the names of an aggregate's state begin with; an outer optimizer keeps nothing of that name."""


class EmptyRound(FarmError):
    """The round has no update with samples, so there is no aggregate of it."""

    code: ClassVar[str] = "empty_round"


class OuterMemory(Protocol):
    """What an aggregate may ask of the outer optimizer, which ``OuterStep`` answers."""

    def kept_of(self, name: str) -> Mapping[str, Tensor]:
        """Return what the optimizer remembers of a parameter now, live; nothing of what it does not step."""

    def options_of(self, name: str) -> Mapping[str, Any]:
        """Return the options of a parameter that it steps, as they are without schedules."""


class Aggregate(ABC):
    """One round's updates, folded one by one, and then one *result* of them. Used by one thread, round after round.

    It is pure: it opens, writes and times nothing, and reads updates only by the readers that it is given.

    - The result MUST be the same to the bit for the same updates, folded in the same order.
    - Of an update ``fold`` MUST keep no more than its reader, and that only where ``reads_in_result`` is true.
    - Memory MUST be that of one result, which is kept from round to round, its ``state``, and blocks of a size that
    does
      not depend on how many elements the tensors have.
    - After an error of a reader the caller MUST ``reset``; any other error MUST leave the aggregate as it was.
    """

    reads_in_result: ClassVar[bool]
    """Whether ``result`` reads what was folded: then the caller MUST keep every reader usable until it has returned."""

    @abstractmethod
    def fold(self, update: Reader, samples: int, scale: float = 1.0, *, client: str | None = None) -> None:
        """Take in an update, whose header has passed ``protocol.encoded.check_encoded`` and whose numbers are finite.

        ``samples`` is how many training samples it is of, ``scale`` (over 0, at most 1) what is left of their weight
        because it is stale. ``client`` is who sent it; None: somebody who sent nothing else.
        Raises: EmptyRound if ``samples * scale`` is not positive, for such an update would weigh nothing; RuntimeError
        between ``result`` and ``reset``; ValueError for a scale that the aggregate has no use for.
        """

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """Return a tensor for each of the layout's returned tensors, by name and in its shape.

        - Parameters MUST come in float64 where the layout has float64, or else in float32, unrounded for the outer
          optimizer; float buffers in float64; integers and bools in the layout's dtype.
        - A number of a float buffer that is the same in all updates MUST come back as it is.
        - A second call MUST return the same tensors. They are the aggregate's own memory: the caller may change them,
          and the next round overwrites them.

        Raises: EmptyRound if nothing was folded since the last reset.
        """

    @abstractmethod
    def reset(self) -> None:
        """Drop all updates, and keep the memory. A new aggregate MUST behave as one that was reset."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resume needs besides, by ``centre.<parameter>``: nothing, unless it goes by rounds before.

        The tensors are the live ones, and change with the next ``result``: write them before.
        """
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  # most keep nothing
        """Take up what ``state`` returned earlier; the tensors are taken over, not copied.

        What another aggregate kept is no use to one that keeps nothing. Raises: LayoutMismatch for an unfit one.
        """

    def follow(self, outer: OuterMemory) -> None:  # noqa: B027  # most go by the updates alone
        """Take the outer optimizer that steps along the results, if what it remembers has a say in them."""

    @property
    @abstractmethod
    def untouched(self) -> frozenset[str]:
        """Return the parameters that have no gradient in this round: the outer optimizer MUST leave them alone."""


def checked_weight(samples: int, scale: float) -> float:
    """Return an update's weight. Raises: EmptyRound if it is not positive, NaN included."""
    weight = samples * scale
    if not weight > 0:
        raise EmptyRound(f"an update of {samples} samples, scaled by {scale}, cannot be folded")
    return weight
