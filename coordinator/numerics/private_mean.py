"""The mean of clients' contributions with bounded influence and Gaussian noise: DP-FedAvg."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from coordinator.numerics.bounding import NormBounding
from coordinator.numerics.distances import BLOCK_ELEMENTS
from coordinator.numerics.votes import Vote
from protocol.codecs.decoder import chunks_of
from protocol.compression import CodecSpec
from protocol.tensors import Layout

Noise = Callable[[int], Tensor]
"""Returns so many fresh independent standard normal numbers, float64, that nobody can foretell or draw again."""


class PrivateMean(NormBounding):
    """The mean of the clients' votes, each of norm ``clip`` at most, with noise on their sum.

        g = (sum of d_i min(1, C / ||d_i||) + N(0, (z C)^2)) / n

    Each client weighs the same, whatever its samples, so that C bounds what one of them changes of the sum; n, how
    many took part, is public. No parameter is untouched: which ones a client touched is its own business. Tasks whose
    models have buffers are refused: those come without noise.
    Memory: the result, and blocks.
    Sources: McMahan et al., arXiv:1710.06963, algorithm 1, with a flat clip; Abadi et al., arXiv:1607.00133,
    algorithm 1.
    """

    def __init__(
        self, layout: Layout, codec: CodecSpec | None, clip: float, noise_multiplier: float, noise: Noise
    ) -> None:
        super().__init__(layout, codec, clip)
        self._deviation = noise_multiplier * clip
        self._noise = noise

    def _settle(self, votes: Sequence[Vote]) -> None:
        super()._settle(votes)
        for spec in self._layout.parameters:
            out = self._results[spec]
            for start, stop in chunks_of(spec.elements, BLOCK_ELEMENTS):
                noise = self._noise(stop - start).mul_(self._deviation / len(votes))
                out[start:stop] = noise.add_(out[start:stop])

    @property
    def untouched(self) -> frozenset[str]:
        """Return nothing: all parameters have a gradient, if only of noise."""
        return frozenset()
