"""The sum of masked updates: integers modulo a power of two, of which nobody knows more than the sum, once unmasked."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordinator.numerics.aggregate import Aggregate, EmptyRound
from protocol.codecs import Reader
from protocol.errors import FarmError
from protocol.masked_layout import places_of
from protocol.recipe import Recipe
from protocol.secagg.unmasking import LeftMasks
from protocol.secure_messages import secure_terms
from protocol.secure_wire import grid_of
from protocol.tensors import Layout

_BLOCK_WORDS: Final = 1 << 18
"""So many words are added, and unmasked, at a time."""


class StillMasked(FarmError):
    """A sum is asked for before its masks were taken off."""


class SecureSum(Aggregate):
    """The weighted mean of updates that were masked by their clients.

        g = decode(sum of y_k modulo 2**bits - masks left) / sum of n_k,    y_k = n_k round(d_k scale) + masks of k

    The clients multiplied by their samples n_k already. Addition modulo 2**bits is exact, so the order of the folds is
    of no matter; before ``unmask`` the words held here are as random as the masks. No parameter is untouched: which
    ones a client touched is masked too.
    Memory: one word of ``bits`` for each number, the result, and blocks.
    Source: Bonawitz et al., CCS 2017, figure 4, round 4.
    """

    reads_in_result = False

    def __init__(self, recipe: Recipe, layout: Layout) -> None:
        self._grid = grid_of(secure_terms(recipe, attempt=0, threshold=1))
        self._layout = layout
        self._places = places_of(layout)
        self._sums: dict[str, NDArray[Any]] = {spec.name: self._grid.zeros(spec.elements) for spec in self._places}
        self._samples = 0
        self._is_unmasked = False
        self._settled: dict[str, Tensor] | None = None

    def fold(self, update: Reader, samples: int, scale: float = 1.0, *, client: str | None = None) -> None:
        """Add a masked update to the sum. Raises: ValueError for a scale: the client's samples are its weight."""
        if scale != 1.0:
            raise ValueError(f"a masked update cannot be scaled by {scale}")
        if samples < 1:
            raise EmptyRound(f"an update of {samples} samples cannot be folded")
        if self._is_unmasked:
            raise RuntimeError("the sum is unmasked: reset() begins the next round")
        for spec in self._places:
            total = self._sums[spec.name]
            for start in range(0, spec.elements, _BLOCK_WORDS):
                block = np.empty(min(_BLOCK_WORDS, spec.elements - start), dtype=total.dtype.newbyteorder("<"))
                update.read_into(spec.name, start * total.itemsize, block.view(np.uint8).data)
                total[start : start + len(block)] += block.astype(total.dtype, copy=False)
        self._samples += samples

    def unmask(self, masks: LeftMasks) -> None:
        """Take what masks are left off the sum, block by block. Once in a round."""
        if self._is_unmasked:
            raise RuntimeError("the masks of this sum are taken off")
        for spec, place in self._places.items():
            total = self._sums[spec.name]
            for start in range(0, spec.elements, _BLOCK_WORDS):
                masks.take_off(total[start : start + _BLOCK_WORDS], place + start)
        self._is_unmasked = True

    def result(self) -> dict[str, Tensor]:
        """Return the mean, decoded from the sum. Raises: EmptyRound; StillMasked."""
        if not self._samples:
            raise EmptyRound
        if not self._is_unmasked:
            raise StillMasked("the masks of this sum are not taken off")
        if self._settled is None:
            self._settled = {}
            for spec in self._layout.returned:
                out = torch.empty(spec.elements, dtype=torch.float64 if spec.dtype == "F64" else torch.float32)
                for start in range(0, spec.elements, _BLOCK_WORDS):
                    mean = self._grid.decode_mean(self._sums[spec.name][start : start + _BLOCK_WORDS], self._samples)
                    out[start : start + len(mean)] = torch.from_numpy(mean)
                self._settled[spec.name] = out.view(spec.shape)
        return dict(self._settled)

    def reset(self) -> None:
        """Drop all updates, and keep the memory."""
        for total in self._sums.values():
            total.fill(0)
        self._samples, self._is_unmasked, self._settled = 0, False, None

    @property
    def untouched(self) -> frozenset[str]:
        """Return nothing: that a client has no gradient of a parameter is its own business."""
        return frozenset()
