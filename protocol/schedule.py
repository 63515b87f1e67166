"""An optimizer's option as a function of the global step: segments one after the other, each a polynomial.

A constant is one coefficient, a warm-up two, half a wave of a cosine about fifteen, and a table of any sixteen values
sixteen: one form for every schedule. The farm's step is the version of the weights that it starts from, so a resumed
or rolled-back task needs no state to find its place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.bounds import Finite, Positive
from protocol.frozen import Frozen


class Segment(Frozen):
    """So many steps; ``coefficients`` are of Chebyshev polynomials over [-1, 1], from the first step to the last."""

    steps: Positive
    coefficients: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=16)]


class Schedule(Frozen):
    """All segments, from step 0 on; after them the last value stays.

    No value is below ``least`` or above ``most``: a polynomial's rounding makes no negative rate of one that ends at 0.
    """

    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=2048)]
    least: Finite
    most: Finite
