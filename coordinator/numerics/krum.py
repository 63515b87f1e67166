"""Aggregates that choose among votes by how close these are to each other: Krum, Multi-Krum and Bulyan.

Each is told the most votes that may be wrong, f. A round with fewer votes than its paper asks for (the rest of an
epoch, a commit at quorum) is the coordinate-wise median, which bears as many wrong ones as can be borne at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from coordinator.numerics.distances import blocks_of, squared_distances
from coordinator.numerics.robust import Median, combined
from coordinator.numerics.votes import Vote
from protocol.aggregates import AggregateName, votes_needed
from protocol.compression import CodecSpec
from protocol.tensors import Layout


class Krum(Median):
    """The vote with the smallest score, whole: its sum of squared distances to its n - f - 2 closest others.

    Distances are over the parameters; float buffers are those of the chosen vote, integers and bools, too.
    It needs n >= 2f + 3 votes.
    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    arXiv:1703.02757, section 4.
    """

    kind = AggregateName.KRUM

    def __init__(self, layout: Layout, codec: CodecSpec | None, byzantine: int) -> None:
        super().__init__(layout, codec)
        self._byzantine = byzantine

    def _settle(self, votes: Sequence[Vote]) -> None:
        if not self._are_enough(len(votes)):
            super()._settle(votes)
            return
        self._combine([votes[number] for number in self._chosen(self._distances(votes))])

    def _borne(self, votes: int) -> int:
        return self._byzantine if self._are_enough(votes) else super()._borne(votes)

    def _are_enough(self, votes: int) -> bool:
        return votes >= votes_needed(self.kind, self._byzantine)

    def _distances(self, votes: Sequence[Vote]) -> Tensor:
        blocks = (
            block
            for spec in self._layout.parameters
            for block in blocks_of(self._rows(votes, spec), spec.elements, self._scratch)
        )
        return squared_distances(blocks, len(votes))

    def _chosen(self, distances: Tensor) -> Sequence[int]:
        """Return the numbers of the votes that are counted."""
        return ranked(distances, self._byzantine)[:1]

    def _combine(self, chosen: Sequence[Vote]) -> None:
        """Fill the results with the mean of the chosen votes: in their own order, so that arrival has no say."""
        for spec, out in self._results.items():
            if not spec.is_float:
                self._settle_one(chosen, spec, out)
                continue
            for start, stop, values in blocks_of(self._rows(chosen, spec), spec.elements, self._scratch):
                # rounding must not lead out of the values; and of equal ones comes the same
                out[start:stop] = values.mean(dim=0).clamp_(*torch.aminmax(values, dim=0))


class MultiKrum(Krum):
    """The mean of the n - f - 2 votes with the smallest scores; all else is as with Krum.

    Source: Blanchard et al., arXiv:1703.02757, section 5; so many as Damaskinos et al., "AggregaThor" (SysML 2019),
    section 2.1, prove.
    """

    kind = AggregateName.MULTI_KRUM

    def _chosen(self, distances: Tensor) -> Sequence[int]:
        return ranked(distances, self._byzantine)[: len(distances) - self._byzantine - 2]


class Bulyan(Krum):
    """Of n - 2f votes, chosen by Krum one after the other, the mean of each coordinate's n - 4f most central values.

    Those are the ones closest to the coordinate's median. It needs n >= 4f + 3 votes. Buffers follow, integers and
    bools by the lower median of the chosen votes.
    Source: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", arXiv:1802.07927,
    section 4.
    """

    kind = AggregateName.BULYAN

    def _chosen(self, distances: Tensor) -> Sequence[int]:
        left, chosen = list(range(len(distances))), list[int]()
        for _ in range(len(distances) - 2 * self._byzantine):
            best = ranked(distances[left][:, left], self._byzantine)[0]
            chosen.append(left.pop(best))
        return chosen

    def _combine(self, chosen: Sequence[Vote]) -> None:
        most_central = partial(central_mean, count=len(chosen) - 2 * self._byzantine)
        for spec, out in self._results.items():
            if spec.is_float:
                combined(self._rows(chosen, spec), out, most_central, scratch=self._scratch)
            else:
                self._settle_one(chosen, spec, out)


def ranked(distances: Tensor, byzantine: int) -> list[int]:
    """Return the votes' numbers, the smallest Krum score first; of equal ones the closest to all, then the first.

    Of fewer than f + 3 votes, as Bulyan comes to have, the score is the distance to the closest one.
    """
    neighbours = max(len(distances) - byzantine - 2, 1)
    scores = distances.sort(dim=1).values[:, 1 : neighbours + 1].sum(dim=1).tolist()
    totals = distances.sum(dim=1).tolist()
    return sorted(range(len(distances)), key=lambda number: (scores[number], totals[number], number))


def central_mean(ascending: Sequence[Tensor], out: Tensor, *, count: int) -> None:
    """Write the mean of the ``count`` values closest to the median of each coordinate's values to ``out``.

    They are neighbours in the order of size, and the first of them is found by leaving out the lowest one as long as
    one more at the upper end is closer; of two that are as far the lower one stays.
    """
    rows = len(ascending)
    middle = (ascending[(rows - 1) // 2] / 2).add_(ascending[rows // 2] / 2)
    first = torch.zeros(out.numel(), dtype=torch.int64)
    for lower, upper in zip(ascending, ascending[count:], strict=False):
        first += upper - middle < middle - lower
    low, high, total = torch.empty_like(middle), torch.empty_like(middle), torch.zeros_like(middle)
    for place, row in enumerate(ascending):
        low = torch.where(first == place, row, low)
        high = torch.where(first == place - count + 1, row, high)
        total.add_(torch.where((first <= place) & (place < first + count), row / count, 0.0))
    # rounding must not lead out of the values; and of equal ones comes the same
    out.copy_(torch.minimum(torch.maximum(total, low), high))
    out.add_(0.0)  # -0.0 becomes 0.0
