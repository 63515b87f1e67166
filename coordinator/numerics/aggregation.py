"""Folding updates into one weighted mean: O(model) memory, whatever the number of clients.

The sum is of floats, so the order of folding decides its last bits. The caller folds in the order of the
assignments' positions, whatever the order of arrival, and the aggregate is then the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from protocol.codecs import Reader, Scratch, sum_of
from protocol.compression import CodecSpec
from protocol.encoded import untouched_in
from protocol.errors import FarmError
from protocol.tensors import Layout


class EmptyRound(FarmError):
    """The round has no update with samples, so there is no mean of it."""

    code: ClassVar[str] = "empty_round"


class Accumulator:
    """The running sum of one round's updates, each decoded and added chunk by chunk.

    Parameters are summed, weighted by samples: float64 in float64, all others in float32. Float buffers are averaged
    in float64 as they come, which leaves those that no update changes exactly as they are. Integer and bool buffers
    (counters, flags) keep the element-wise maximum. Memory: the layout's tensors in those dtypes, plus some chunks of
    scratch, all of it kept from round to round.
    Source: McMahan et al., arXiv:1602.05629, algorithm 1 (weighted average).
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None = None) -> None:
        scratch = Scratch()
        self._layout = layout
        self._untouched: frozenset[str] = frozenset()
        self._sums = {spec: sum_of(spec, codec or CodecSpec(), scratch) for spec in layout.returned}
        self._samples = 0
        self._weight = 0.0
        self._settled: dict[str, Tensor] | None = None

    @property
    def samples(self) -> int:
        """Count the samples folded since the last reset."""
        return self._samples

    @property
    def untouched(self) -> frozenset[str]:
        """Return the parameters that no folded update has a gradient of: in one process they would have none."""
        return self._untouched

    def fold(self, update: Reader, samples: int, scale: float = 1.0) -> None:
        """Add ``samples * scale`` times the update, whose header has passed ``protocol.encoded.check_encoded``.

        ``scale`` is below 1 for a stale update. Raises: EmptyRound if the product is not positive: such an update
        would weigh nothing.
        """
        weight = samples * scale
        if not weight > 0:
            raise EmptyRound(f"an update of {samples} samples, scaled by {scale}, cannot be folded")
        if self._settled is not None:
            raise RuntimeError("the sum has become the mean: reset() begins the next round")
        untouched = untouched_in(self._layout, update.header)
        self._untouched = self._untouched & untouched if self._samples else untouched
        for total in self._sums.values():
            total.add(update, weight, first=self._samples == 0)
        self._samples += samples
        self._weight += weight

    def mean(self) -> dict[str, Tensor]:
        """Turn the sum into the weighted mean, in place, and return it in the layout's shapes, until ``reset``.

        Floats stay in the dtype of their sum (float32 for f16 and bf16, float64 for buffers), so that the outer
        optimizer gets them unrounded; integers and bools are in the layout's dtype. The tensors are the accumulator's
        own memory: the next round overwrites them.
        Raises: EmptyRound if nothing was folded.
        """
        if self._samples == 0:
            raise EmptyRound
        if self._settled is None:
            self._settled = {spec.name: total.settle().view(spec.shape) for spec, total in self._sums.items()}
            for spec, total in self._sums.items():
                if total.is_weighted:
                    self._settled[spec.name].div_(self._weight)
        return dict(self._settled)

    def reset(self) -> None:
        """Forget all updates and keep the memory, which the first fold of the next round overwrites."""
        self._samples = 0
        self._weight = 0.0
        self._untouched = frozenset()
        self._settled = None


def all_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or None if all are finite.

    One pass without temporaries: minimum and maximum are finite exactly when all elements are.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                return name
    return None
