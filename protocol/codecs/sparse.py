"""What the sparse codecs share: few elements are stored, the others are zero."""

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
        """Return (positions [count] int64, ascending, counted from ``start``; values [count] float32).

        They are at least those of elements ``start`` to ``stop``; there may be some before and after.
        """

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with zeros and the values among them."""
        positions, values = self._entries_within(start, out.numel())
        out.zero_().scatter_(0, positions, values)

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        positions, values = self._entries_within(start, chunk.numel())
        chunk.scatter_add_(0, positions, values.to(chunk.dtype) * weight)

    def _entries_within(self, start: int, elements: int) -> tuple[Tensor, Tensor]:
        positions, values = self._entries(start, start + elements)
        begin, end = torch.searchsorted(positions, torch.tensor([0, elements])).tolist()
        return positions[begin:end], values[begin:end]


def largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest magnitudes along the last dimension, ascending."""
    return torch.topk(values.abs(), count, dim=-1, sorted=False).indices.sort(dim=-1).values
