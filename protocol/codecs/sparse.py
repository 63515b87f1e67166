"""What topk and sparseloco share: few elements are stored, the others are zero."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from protocol.codecs.decoder import Decoder


class SparseDecoder(Decoder):
    """Positions and their values. Adding touches only the elements at those positions."""

    chunk_elements = 2**22
    """More than of dense codecs: the work is in the stored elements, and each chunk costs some calls."""

    @abstractmethod
    def _entries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return (positions [count] int64 counted from ``start``, values [count] float32) of elements in the range."""

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with zeros and the values among them."""
        positions, values = self._entries(start, start + out.numel())
        out.zero_().index_copy_(0, positions, values)

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        positions, values = self._entries(start, start + chunk.numel())
        chunk.index_add_(0, positions, values.to(chunk.dtype), alpha=weight)


def within(positions: Tensor, values: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """Leave out the positions that are not in [0, elements)."""
    inside = (positions >= 0) & (positions < elements)
    return positions[inside], values[inside]


def largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest magnitudes along the last dimension, ascending."""
    return torch.topk(values.abs(), count, dim=-1, sorted=False).indices.sort(dim=-1).values
