"""Updates as integers modulo a power of two: what is summed there is summed exactly, in whatever order.

Each number is clipped to ``[-clip, clip]``, rounded to a multiple of ``1 / scale`` and multiplied by the client's
samples.
The scale is the largest at which not even all samples of the round at the clip overflow the sum's sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from protocol.secagg.errors import SecureSumFailed

Words = NDArray[Any]
"""Unsigned integers, whose sums wrap around."""

_TYPES: Final = {32: (np.uint32, np.int32), 64: (np.uint64, np.int64)}
MAX_SCALE: Final = 2**40
"""Finer than float32 anywhere near the clip; so that a float64 holds each product exactly, as a whole number."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How a round's updates are written: ``most_samples`` is what all its clients have together."""

    clip: float
    most_samples: int
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.most_samples < 1 or self.bits not in _TYPES:
            raise ValueError(f"clip {self.clip}, {self.most_samples} samples, {self.bits} bits")
        if self.scale == 0:
            raise SecureSumFailed(
                f"{self.bits} bits are too few for a sum over {self.most_samples} samples: use 64 bits"
            )

    @property
    def steps(self) -> int:
        """How many multiples of the resolution there are from 0 to the clip."""
        return min(((1 << (self.bits - 1)) - 1) // self.most_samples, MAX_SCALE)

    @property
    def scale(self) -> float:
        """Multiples of the resolution in 1.0."""
        return self.steps / self.clip

    @property
    def error(self) -> float:
        """By how much the mean of a number may be wrong that nobody had to clip."""
        return 0.5 / self.scale

    def encode(self, values: NDArray[np.floating[Any]], samples: int) -> Words:
        """Return ``samples`` times the values, as words. Raises: SecureSumFailed for too many samples, or NaN."""
        if not 0 < samples <= self.most_samples:
            raise SecureSumFailed(f"{samples} samples in a round of at most {self.most_samples}")
        wide = np.asarray(values, dtype=np.float64)
        if np.isnan(wide).any():
            raise SecureSumFailed("an update with NaN in it has no place in a sum")
        steps = np.rint(np.clip(wide, -self.clip, self.clip) * self.scale).astype(np.int64)
        unsigned, signed = _TYPES[self.bits]
        return (steps * samples).astype(signed).view(unsigned)

    def decode_mean(self, total: Words, samples: int) -> NDArray[np.float64]:
        """Return the mean over samples, of a sum over clients that had so many together."""
        _, signed = _TYPES[self.bits]
        mean: NDArray[np.float64] = total.view(signed).astype(np.float64) / (self.scale * samples)
        return mean

    def zeros(self, count: int) -> Words:
        """Return so many words that are 0."""
        return np.zeros(count, dtype=_TYPES[self.bits][0])
