"""Folding updates into one weighted mean: O(model) memory, whatever the number of clients.

The sum is of floats, so the order of folding decides its last bits. The caller folds in the order of the
assignments' positions, whatever the order of arrival, and the aggregate is then the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import torch
from torch import Tensor

from protocol.errors import FarmError
from protocol.tensors import Layout, TensorSpec

CHUNK_ELEMENTS: Final = 2**18
"""Elements folded at once: a chunk of float32 scratch (1 MiB) stays in the cache between its two uses."""
TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""torch's name of each dtype of ``protocol.tensors``."""


class EmptyRound(FarmError):
    """The round has no update with samples, so there is no mean of it."""

    code: ClassVar[str] = "empty_round"


class Accumulator:
    """The running sum of one round's updates.

    Float tensors (parameters and buffers) are summed, weighted by samples: float64 in float64, all others in
    float32. Integer and bool buffers (counters, flags) keep the element-wise maximum. Memory: the layout's tensors
    in those dtypes, plus one chunk.
    Source: McMahan et al., arXiv:1602.05629, algorithm 1 (weighted average).
    """

    def __init__(self, layout: Layout) -> None:
        self._specs = layout.returned
        self._sums = {spec.name: torch.zeros(spec.elements, dtype=_sum_dtype(spec)) for spec in self._specs}
        self._scratch = torch.empty(CHUNK_ELEMENTS, dtype=torch.float32)
        self._samples = 0
        self._weight = 0.0

    @property
    def samples(self) -> int:
        """Count the samples folded since the last reset."""
        return self._samples

    def fold(self, update: Mapping[str, Tensor], samples: int, scale: float = 1.0) -> None:
        """Add ``samples * scale`` times the update. The update has passed ``protocol.tensors.check_update``.

        ``scale`` is below 1 for a stale update. Raises: EmptyRound if the product is not positive: such an update
        would weigh nothing.
        """
        weight = samples * scale
        if not weight > 0:
            raise EmptyRound(f"an update of {samples} samples, scaled by {scale}, cannot be folded")
        for spec in self._specs:
            flat, total = update[spec.name].reshape(-1), self._sums[spec.name]
            if not spec.is_float:
                _fold_maximum(total, flat, first=self._samples == 0)
            elif flat.dtype == total.dtype:
                total.add_(flat, alpha=weight)
            else:
                self._fold_chunked(total, flat, weight)
        self._samples += samples
        self._weight += weight

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean of what was folded, in the layout's shapes, as new tensors.

        Floats stay in the dtype of their sum (float32 for f16 and bf16), so that the outer optimizer gets them
        unrounded; integers and bools are in the layout's dtype.
        Raises: EmptyRound if nothing was folded.
        """
        if self._samples == 0:
            raise EmptyRound
        return {spec.name: self._mean_of(spec) for spec in self._specs}

    def reset(self) -> None:
        """Forget all updates and keep the memory, for the next round."""
        self._samples = 0
        self._weight = 0.0
        for total in self._sums.values():
            total.zero_()

    def _mean_of(self, spec: TensorSpec) -> Tensor:
        total = self._sums[spec.name]
        value = total / self._weight if spec.is_float else total.clone()
        return value.reshape(spec.shape)

    def _fold_chunked(self, total: Tensor, flat: Tensor, weight: float) -> None:
        # A mixed-dtype add_ is 6 times slower: convert into scratch that stays in the cache.
        for start in range(0, total.numel(), CHUNK_ELEMENTS):
            source = flat[start : start + CHUNK_ELEMENTS]
            scratch = self._scratch[: source.numel()]
            scratch.copy_(source)
            total[start : start + CHUNK_ELEMENTS].add_(scratch, alpha=weight)


def all_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or None if all are finite.

    One pass without temporaries: minimum and maximum are finite exactly when all elements are.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)
            if not (low.isfinite() and high.isfinite()):
                return name
    return None


def _sum_dtype(spec: TensorSpec) -> torch.dtype:
    exact = spec.dtype == "F64" or not spec.is_float
    return TORCH_DTYPES[spec.dtype] if exact else torch.float32


def _fold_maximum(total: Tensor, flat: Tensor, *, first: bool) -> None:
    if first:
        total.copy_(flat)
    else:
        torch.maximum(total, flat, out=total)
