"""The value of a schedule at a step."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.schedule import Schedule


def value_at(schedule: Schedule, step: int) -> float:
    """Return the value at a global step, counted from 0; after the last segment its last value."""
    return min(max(_unbounded(schedule, step), schedule.least), schedule.most)


def _unbounded(schedule: Schedule, step: int) -> float:
    for segment in schedule.segments:
        if step < segment.steps:
            return _polynomial(segment.coefficients, -1.0 + 2.0 * step / max(segment.steps - 1, 1))
        step -= segment.steps
    last = schedule.segments[-1]
    return _polynomial(last.coefficients, 1.0 if last.steps > 1 else -1.0)


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    """Sum Chebyshev polynomials. Source: Clenshaw, Math. Tables Aids Comput. 9 (1955)."""
    one = two = 0.0
    for coefficient in reversed(coefficients[1:]):
        one, two = coefficient + 2.0 * x * one - two, one
    return coefficients[0] + x * one - two
