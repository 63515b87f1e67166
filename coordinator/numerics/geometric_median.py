"""The geometric median of a round's votes, by smoothed Weiszfeld steps: robust federated aggregation (RFA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from coordinator.numerics.distances import blocks_of, lower_median
from coordinator.numerics.robust import Median
from coordinator.numerics.votes import Vote
from protocol.aggregates import ROBUST_VOTES

MOST_STEPS: Final = 16
"""Each reads all votes once."""
TOLERANCE: Final = 1e-3
"""It ends with a step that is shorter than this share of the votes' median distance."""
SMOOTHING: Final = 1e-6
"""A vote's distance counts as this share of their median at least: else one that is hit exactly would keep all others
out. Relative, so that the unit of the updates has no say; the paper has an absolute 1e-6."""


class GeometricMedian(Median):
    """The point z of the parameters with the smallest sum of Euclidean distances to all votes d_i.

    z = sum b_i d_i / sum b_i with b_i = 1 / max(nu, ||d_i - z||), again and again, from the coordinate-wise median
    on: from the mean, as in the paper, it would take steps only to come back from where one liar has moved that. The
    limit is the same. It holds while fewer than half of the votes are wrong. Buffers are the votes' coordinate-wise
    medians. Of one or two votes it is their mean.
    Memory: as ``TrimmedMean``.
    Source: Pillutla et al., "Robust Aggregation for Federated Learning", arXiv:1912.13445, algorithm 2.
    """

    def _settle(self, votes: Sequence[Vote]) -> None:
        super()._settle(votes)
        if len(votes) < ROBUST_VOTES:
            return
        distances, _ = self._pass(votes)
        typical = lower_median(distances)
        if not typical:
            return  # more than half of the votes are where it is
        for _ in range(MOST_STEPS):
            weights = 1 / distances.clamp(min=SMOOTHING * typical)
            distances, moved = self._pass(votes, weights / weights.sum())
            if moved <= TOLERANCE * typical:
                return

    def _pass(self, votes: Sequence[Vote], weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Move to the votes' mean by these weights; return each vote's distance from there, and how far it was."""
        squares, moved = torch.zeros(len(votes), dtype=torch.float64), 0.0
        for spec in self._layout.parameters:
            out = self._results[spec]
            for start, stop, values in blocks_of(self._rows(votes, spec), spec.elements, self._scratch):
                point = out[start:stop].to(torch.float64, copy=True)
                if weights is not None:
                    before, point = point, weights @ values
                    out[start:stop] = point
                    moved += float(before.sub_(point).square_().sum())
                squares += values.sub_(point).square_().sum(dim=1)
        return squares.sqrt_(), math.sqrt(moved)
