"""The weighted mean: O(model) memory, whatever the number of clients.

The sum is of floats, so the order of folding decides its last bits. The caller folds in the order of the
assignments' positions, whatever the order of arrival, and the mean is then the same to the bit.
"""

from __future__ import annotations

from torch import Tensor

from coordinator.numerics.aggregate import Aggregate, EmptyRound, checked_weight
from protocol.codecs import Reader, Scratch, sum_of
from protocol.codecs.sums import Sum
from protocol.compression import CodecSpec
from protocol.encoded import lacking_in, untouched_in
from protocol.tensors import Layout, TensorSpec


class WeightedMean(Aggregate):
    """The running sum of one round's updates, each decoded and added chunk by chunk; divided by its weight at the end.

    Parameters are summed, weighted by samples: float64 in float64, all others in float32. Float buffers are averaged
    in float64 as they come, which leaves those that no update changes exactly as they are. Integer and bool buffers
    (counters, flags) keep the element-wise maximum. Memory: the layout's tensors in those dtypes, plus some chunks of
    scratch, all of it kept from round to round.
    Source: McMahan et al., arXiv:1602.05629, algorithm 1 (weighted average).
    """

    reads_in_result = False

    def __init__(self, layout: Layout, codec: CodecSpec | None = None) -> None:
        scratch = Scratch()
        self._layout = layout
        self._codec = codec or CodecSpec()
        self._untouched: frozenset[str] = frozenset()
        self._sums = {spec: sum_of(spec, codec or CodecSpec(), scratch) for spec in layout.returned}
        self._weight = 0.0
        self._settled: dict[str, Tensor] | None = None

    def fold(self, update: Reader, samples: int, scale: float = 1.0, *, client: str | None = None) -> None:
        """Add ``samples * scale`` times the update, whoever sent it."""
        weight = checked_weight(samples, scale)
        if self._settled is not None:
            raise RuntimeError("the sum has become the mean: reset() begins the next round")
        untouched = untouched_in(self._layout, update.header)
        self._untouched = self._untouched & untouched if self._weight else untouched
        lacking = lacking_in(self._layout, self._codec, update.header)
        for spec, total in self._sums.items():
            if spec.name not in lacking:
                self._add(total, spec, update, weight)
            elif not self._weight:
                total.clear()
        self._weight += weight

    def _add(self, total: Sum, _spec: TensorSpec, update: Reader, weight: float) -> None:
        total.add(update, weight, first=not self._weight)

    def result(self) -> dict[str, Tensor]:
        """Turn the sum into the weighted mean, in place: the tensors are those that the updates were summed in."""
        if not self._weight:
            raise EmptyRound
        if self._settled is None:
            self._settled = {spec.name: total.settle().view(spec.shape) for spec, total in self._sums.items()}
            for spec, total in self._sums.items():
                if total.is_weighted:
                    self._settled[spec.name].div_(self._weight)
        return dict(self._settled)

    def reset(self) -> None:
        """Drop all updates and keep the memory, which the first fold of the next round overwrites."""
        self._weight = 0.0
        self._untouched = frozenset()
        self._settled = None

    @property
    def untouched(self) -> frozenset[str]:
        """Return the parameters that no folded update has a gradient of: in one process they would have none."""
        return self._untouched
