"""When a task's rounds were committed, and so how many samples it had done at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from protocol.rest import RoundView


class Commits:
    """Gathers rounds from the newest ones that the server tells now and then; times are on its clock."""

    def __init__(self) -> None:
        self._rounds: dict[int, tuple[float, int]] = {}

    def __len__(self) -> int:
        """Count the committed rounds that are known."""
        return len(self._rounds)

    def note(self, rounds: Iterable[RoundView]) -> None:
        """Take in the committed ones among them."""
        self._rounds |= {r.number: (r.committed_at, r.samples) for r in rounds if r.committed_at is not None}

    @property
    def newest(self) -> float:
        """When the last round was committed; 0 before the first."""
        return max((at for at, _ in self._rounds.values()), default=0.0)

    def samples(self, began: float, ended: float) -> float:
        """Return the samples done in that time: a round's are done evenly between the commit before it and its own.

        Raises: ValueError if it begins before the first commit or ends after the last one that is known.
        """
        return self._done_by(ended) - self._done_by(began)

    def _done_by(self, moment: float) -> float:
        rounds = sorted(self._rounds.values())
        done = 0
        for (before, _), (at, samples) in pairwise(rounds):
            if before <= moment <= at:
                return done + samples * (moment - before) / (at - before)
            done += samples
        raise ValueError(f"no rounds are known to be committed before and after {moment}")
