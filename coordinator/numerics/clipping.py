"""Clipping of a mean gradient: by its elements, by its norm, or by both, the elements first.

What ``torch.nn.utils.clip_grad_value_`` and ``clip_grad_norm_`` do to a model's gradients.
Source: Pascanu et al., arXiv:1211.5063.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.nn.utils import get_total_norm

from protocol.recipe import Mode, Recipe

_NORM_EPSILON: Final = 1e-6
"""torch's own, which keeps a zero gradient zero."""


@dataclass(frozen=True, slots=True)
class Clipping:
    """The largest absolute value of an element, and the largest Euclidean norm of all elements; None: no limit."""

    value: float | None = None
    norm: float | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Clipping:
        """Return what the server clips by: nothing in weights mode, where clients clip before each local step."""
        if recipe.mode is Mode.WEIGHTS:
            return cls()
        return cls(recipe.clip_value, recipe.clip_norm)

    def apply(self, gradients: Sequence[Tensor]) -> None:
        """Clip in place, all gradients by one norm. A norm of NaN or infinity makes all of them NaN, as torch does."""
        if self.value is not None:
            for gradient in gradients:
                gradient.clamp_(-self.value, self.value)
        if self.norm is not None and gradients:
            share = (self.norm / (get_total_norm(gradients) + _NORM_EPSILON)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
