"""The mean of the states that the inner optimizers of a round's clients ended with: O(state) memory."""

from __future__ import annotations

import math
import sys
from typing import Final

import torch
from torch import Tensor

from coordinator.numerics.aggregate import EmptyRound, checked_weight
from protocol.codecs import CHUNK_ELEMENTS, TORCH_DTYPES, Reader, Scratch
from protocol.codecs.reading import Elements
from protocol.errors import LayoutMismatch
from protocol.inner_state import Tree, checked_tree, joined, named_in, state_tensors
from protocol.tensors import TensorBytes

_COUNTER: Final = "step"
"""What torch's optimizers call the count of their steps, which is a float tensor."""
LARGEST: Final = sys.float_info.max / 2
"""The difference of two numbers up to this is finite."""


class InnerStateMean:
    """One round's states, folded one by one in the order of their positions, each read chunk by chunk.

    Float tensors become their mean, weighted by samples: a running mean in float64, rounded to the tensor's dtype after
    each state, so that one state alone, or equal ones, come out as they are, to the bit. Integers, bools and counts of
    steps keep the largest. Of numbers outside of tensors counts are the largest, all others the heaviest state's.
    A tensor that only some states have (a parameter's moments begin with its first gradient) is the mean of theirs.
    Source of the running mean: Welford, Technometrics 4 (1962); weighted: West, CACM 22 (1979).
    """

    def __init__(self) -> None:
        self._scratch = Scratch()
        self.reset()

    def reset(self) -> None:
        """Begin a round. What ``result`` returned stays as it is."""
        self._tensors: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._tree: Tree = None
        self._heaviest = 0.0

    def fold(self, update: Reader, samples: int, scale: float = 1.0) -> None:
        """Take in the state that an update brings, which ``first_bad`` found good, at the update's own weight.

        Raises: EmptyRound if that is not positive; LayoutMismatch if a tensor has another form than in a state before;
            MalformedTensors. The round's states are of no use after the last two.
        """
        weight = checked_weight(samples, scale)
        tree = checked_tree(update.header)
        for name, entry in state_tensors(update.header).items():
            self._fold_tensor(update, name, entry, weight)
        self._tree = joined(self._tree, tree, prefer_other=weight > self._heaviest) if self._heaviest else tree
        self._heaviest = max(self._heaviest, weight)

    def result(self) -> tuple[dict[str, Tensor], Tree]:
        """Return the state's tensors and its tree, which are the caller's now. Raises: EmptyRound."""
        if not self._heaviest:
            raise EmptyRound
        return {name: self._tensors[name] for name in named_in(self._tree)}, self._tree

    def _fold_tensor(self, update: Reader, name: str, entry: TensorBytes, weight: float) -> None:
        mean = self._tensors.get(name)
        before = self._weights.get(name, 0.0)
        if mean is None:
            mean = self._tensors[name] = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        elif (tuple(mean.shape), mean.dtype) != (entry.shape, TORCH_DTYPES[entry.dtype]):
            raise LayoutMismatch(f"{name!r} is {entry.dtype} {list(entry.shape)} in one state of the round only")
        is_averaged = mean.dtype.is_floating_point and name.rpartition("/")[2] != _COUNTER
        share = weight / (before + weight)
        stored, flat = Elements(update, name, "", self._scratch), mean.view(-1)
        for start in range(0, stored.count, CHUNK_ELEMENTS):
            into = flat[start : start + CHUNK_ELEMENTS]
            values = stored.read(start, start + into.numel())
            if not before:
                into.copy_(values)
            elif is_averaged:
                self._move_towards(into, values, share)
            else:
                torch.maximum(into, values, out=into)
        self._weights[name] = before + weight

    def _move_towards(self, mean: Tensor, values: Tensor, share: float) -> None:
        wide = self._scratch.take("mean", mean.numel(), torch.float64).copy_(mean)
        step = self._scratch.take("step", mean.numel(), torch.float64).copy_(values).sub_(wide)
        mean.copy_(wide.add_(step, alpha=share))


def first_bad(update: Reader) -> str | None:
    """Return the first tensor of a state with NaN, an infinity or a number that no mean can be made of, or None."""
    scratch = Scratch()
    for name in state_tensors(update.header):
        stored = Elements(update, name, "", scratch)
        if not stored.dtype.is_floating_point:
            continue
        for start in range(0, stored.count, CHUNK_ELEMENTS):
            bounds = torch.aminmax(stored.read(start, min(start + CHUNK_ELEMENTS, stored.count)))
            if not all(math.isfinite(bound.item()) and abs(bound.item()) <= LARGEST for bound in bounds):
                return name
    return None
