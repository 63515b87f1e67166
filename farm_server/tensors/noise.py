"""Gaussian noise from the operating system's generator: nobody can foretell it, and nobody can draw it again."""

from __future__ import annotations

import os
from typing import Final

import numpy as np
import torch
from torch import Tensor

_HALVES: Final = 2
_BITS: Final = 53
"""Of a double's significand."""


def fresh_gaussian(count: int) -> Tensor:
    """Return so many independent standard normal numbers, float64, from ``os.urandom``.

    By Box and Muller (Annals of Mathematical Statistics 29, 1958) from numbers of 53 bits in (0, 1). Not one of a
    seed: who had that could take the noise off.
    """
    pairs = -(-count // _HALVES)
    drawn = np.frombuffer(os.urandom(_HALVES * 8 * pairs), np.uint64) >> np.uint64(64 - _BITS)
    first, second = ((drawn + 0.5) * 2.0**-_BITS).reshape(_HALVES, pairs)
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(both[:count])
