"""From a table of an option's values, one for each global step, to a short schedule that gives them again."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import chebyshev

from farm_client.executor.failures import CodeError
from farm_client.executor.timeline import GroupOptions, Place, Timeline
from protocol.schedule import Schedule, Segment
from protocol.task_length import TaskLength


class TooLong(CodeError):
    """The schedule cannot be written down for the server."""


Values = npt.NDArray[np.float64]

MAX_SEGMENTS: Final = 2048
MAX_STEPS: Final = 1_000_000
"""Of a task whose schedule is tabulated: some 10 s at the submission."""
_COEFFICIENTS: Final = 16
_RELATIVE: Final = 1e-12
_OF_LARGEST: Final = 1e-12
"""A value may be off by so much of itself, and so much of the largest one: a float32 has 6e-8."""
_SAMPLED: Final = 4 * _COEFFICIENTS
"""A polynomial is fitted through so many of a segment's values, and then compared with all of them."""


def schedules_of(timeline: Timeline, length: TaskLength) -> list[dict[str, Schedule]]:
    """Return the options of each parameter group that change during the task, by name, as the server follows them.

    Of a task's only optimizer, in gradients mode: a step is a version. Pairs are by ``beta1`` and ``beta2``.
    Raises: TooLong.
    """
    if length.steps > MAX_STEPS:
        raise TooLong(f"it has {length.steps:,} steps, over {MAX_STEPS:,}")
    tables: list[dict[str, list[float]]] = []
    for step in range(length.steps):
        [groups] = timeline.options_at(Place(step, step // length.steps_per_epoch)).values()
        tables = tables or [{name: [] for name in _numbers(group)} for group in groups]
        for table, group in zip(tables, groups, strict=True):
            for name, value in _numbers(group).items():
                table[name].append(value)
    return [{n: _fitted_table(n, v) for n, v in table.items() if min(v) != max(v)} for table in tables]


def _numbers(group: GroupOptions) -> dict[str, float]:
    """Return the options that are numbers."""
    numbers: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            numbers["beta1"], numbers["beta2"] = map(float, value)
        elif isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers


def _fitted_table(name: str, values: list[float]) -> Schedule:
    schedule = fit(np.array(values))
    if schedule is None:
        raise TooLong(f"its {name} changes too often: over {MAX_SEGMENTS:,} pieces of a curve")
    return schedule


def fit(values: Values) -> Schedule | None:
    """Return the schedule with these values from step 0 on; None if it would need too many segments.

    Each segment is the longest that one polynomial of at most 16 coefficients gives, found by doubling and halving.
    """
    allowed = _RELATIVE * np.abs(values) + _OF_LARGEST * float(np.abs(values).max())
    segments: list[Segment] = []
    start = 0
    while start < len(values):
        if len(segments) == MAX_SEGMENTS:
            return None
        segment = _longest(values[start:], allowed[start:])
        segments.append(segment)
        start += segment.steps
    return Schedule(segments=tuple(segments), least=float(values.min()), most=float(values.max()))


def _longest(values: Values, allowed: Values) -> Segment:
    constant = _run(values)
    best = Segment(steps=constant, coefficients=(float(values[0]),))
    if constant > 1:  # a plateau, which is exact
        return best
    short, step = 1, 2
    while step <= len(values) and (found := _fitted(values[:step], allowed[:step])) is not None:
        best, short, step = found, step, 2 * step
    long = min(step, len(values) + 1)
    while long - short > 1:
        middle = (short + long) // 2
        found = _fitted(values[:middle], allowed[:middle])
        if found is None:
            long = middle
        else:
            best, short = found, middle
    return best


def _run(values: Values) -> int:
    """Return how many values from the first on are equal."""
    differing = np.flatnonzero(values != values[0])
    return int(differing[0]) if len(differing) else len(values)


def _fitted(values: Values, allowed: Values) -> Segment | None:
    """Return the polynomial of the fewest coefficients that gives all values, or None."""
    steps = len(values)
    x = np.linspace(-1.0, 1.0, steps)
    # Dense towards both ends, where a polynomial through evenly spaced points would swing.
    angles = np.linspace(np.pi, 0.0, min(steps, _SAMPLED))
    chosen = np.unique(np.rint((np.cos(angles) + 1) / 2 * (steps - 1)).astype(np.int64))
    for degree in dict.fromkeys(min(degree, len(chosen) - 1) for degree in (1, 3, 7, _COEFFICIENTS - 1)):
        coefficients = chebyshev.chebfit(x[chosen], values[chosen], degree)
        if np.all(np.abs(chebyshev.chebval(x, coefficients) - values) <= allowed):
            return Segment(steps=steps, coefficients=tuple(coefficients.tolist()))
    return None
