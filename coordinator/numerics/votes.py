"""One vote for each client of a round, and what all aggregates that count votes have in common.

What a client sent for several parts of a round is averaged by samples, and is one vote then: who does more parts,
because it is fast or another client was lost, has no more say. The votes are read side by side, block by block.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from coordinator.numerics.aggregate import Aggregate, EmptyRound, checked_weight
from protocol.codecs import TORCH_DTYPES, Reader, Scratch, decoder
from protocol.compression import CodecSpec
from protocol.encoded import untouched_in
from protocol.tensors import Layout, Role, TensorSpec


class Row(Protocol):
    """One vote's values of one tensor, read block by block."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""

    def read(self, start: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` of ``dtype`` with the values from ``start`` on."""


@dataclass(slots=True)
class Vote:
    """What one client sent in a round: readers of its updates, with their samples."""

    parts: list[tuple[Reader, int]] = field(default_factory=list)
    untouched: list[frozenset[str]] = field(default_factory=list)
    scratches: list[Scratch] = field(default_factory=list)

    def add(self, update: Reader, samples: int, untouched: frozenset[str]) -> None:
        """Take in one more of the client's updates."""
        self.parts.append((update, samples))
        self.untouched.append(untouched)
        self.scratches.append(Scratch())

    def leaves_alone(self) -> frozenset[str]:
        """Return the parameters that none of its updates touches."""
        return reduce(frozenset.intersection, self.untouched)

    def row(self, spec: TensorSpec, codec: CodecSpec) -> Row:
        """Return its values of one tensor."""
        rows = [decoder(part, spec, codec, own) for (part, _), own in zip(self.parts, self.scratches, strict=True)]
        if len(rows) == 1:
            return rows[0]
        return MeanRow(rows, [samples for _, samples in self.parts], self.scratches[0])


class MeanRow:
    """The mean of several rows by samples; of integers and bools the largest, as ``WeightedMean`` has it.

    It moves from one row to the next by the share of its samples, so what all agree on stays as it is, to the bit;
    differences are halved first, so that those of huge numbers of either sign stay finite.
    """

    def __init__(self, rows: Sequence[Row], samples: Sequence[int], scratch: Scratch) -> None:
        self._rows = rows
        self._samples = samples
        self._scratch = scratch
        self.dtype = rows[0].dtype

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the mean of the values from ``start`` on."""
        self._rows[0].read(start, out)
        weight = self._samples[0]
        half = self._scratch.take("another part", out.numel(), self.dtype)
        for row, samples in zip(self._rows[1:], self._samples[1:], strict=True):
            row.read(start, half)
            weight += samples
            if not out.is_floating_point():
                torch.maximum(out, half, out=out)
                continue
            half.div_(2).sub_(out, alpha=0.5)
            share = samples / weight
            out.add_(half, alpha=share).add_(half, alpha=share)


class VotingAggregate(Aggregate):
    """An aggregate in which each client has one vote, whatever its samples, and whatever the place of its updates.

    ``result`` reads all votes; subclasses say what becomes of them (``_settle``), and how many wrong ones they bear
    (``_borne``). A parameter counts as untouched unless more votes touch it than those.
    """

    reads_in_result = True

    def __init__(self, layout: Layout, codec: CodecSpec | None = None) -> None:
        self._layout = layout
        self._codec = codec or CodecSpec()
        self._results = {spec: torch.empty(spec.elements, dtype=_result_dtype(spec)) for spec in layout.returned}
        self._scratch = Scratch()
        self._votes: dict[object, Vote] = {}
        self._settled = False

    def fold(self, update: Reader, samples: int, scale: float = 1.0, *, client: str | None = None) -> None:
        """Keep the reader. There is no scale but 1: a vote can't be made smaller."""
        checked_weight(samples, scale)
        if scale != 1:
            raise ValueError(f"every client has one vote, and a stale one's cannot be scaled by {scale}")
        if self._settled:
            raise RuntimeError("the result is made: reset() begins the next round")
        untouched = untouched_in(self._layout, update.header)
        voter = object() if client is None else client
        self._votes.setdefault(voter, Vote()).add(update, samples, untouched)

    def result(self) -> dict[str, Tensor]:
        """Read all votes side by side."""
        if not self._votes:
            raise EmptyRound
        if not self._settled:
            self._settle(list(self._votes.values()))
            self._settled = True
        return {spec.name: out.view(spec.shape) for spec, out in self._results.items()}

    def reset(self) -> None:
        """Drop the readers, and keep the result's memory."""
        self._votes.clear()
        self._settled = False

    @property
    def untouched(self) -> frozenset[str]:
        """Return the parameters that hardly any vote has a gradient of: those few may be wrong, or lie."""
        votes = Counter(name for vote in self._votes.values() for name in vote.leaves_alone())
        least = len(self._votes) - self._borne(len(self._votes))
        return frozenset(name for name, count in votes.items() if count >= least)

    @abstractmethod
    def _settle(self, votes: Sequence[Vote]) -> None:
        """Fill ``_results`` with what these votes become."""

    @abstractmethod
    def _borne(self, votes: int) -> int:
        """Return how many of so many votes may be wrong without ruling the result."""

    def _rows(self, votes: Sequence[Vote], spec: TensorSpec) -> list[Row]:
        return [vote.row(spec, self._codec) for vote in votes]


def _result_dtype(spec: TensorSpec) -> torch.dtype:
    if not spec.is_float:
        return TORCH_DTYPES[spec.dtype]
    return torch.float64 if spec.dtype == "F64" or spec.role is Role.BUFFER else torch.float32
