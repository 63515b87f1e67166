"""The aggregates once more, in NumPy and float64, from their papers: whole updates in, one out.

An update is a dict of arrays. ``counters`` names the integer and bool buffers, ``buffers`` the float ones; all others
are parameters, of which alone distances and norms are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Table = Mapping[str, Array]
"""A tensor's values of all updates, stacked."""


@dataclass(frozen=True)
class Roles:
    """Which tensors are no parameters."""

    buffers: frozenset[str] = frozenset()
    counters: frozenset[str] = frozenset()


Reference = Callable[[Table, Sequence[int], Roles], dict[str, Array]]


def _vectors(table: Table, roles: Roles) -> Array:
    parameters = [values for name, values in table.items() if name not in roles.buffers | roles.counters]
    if not parameters:
        return np.zeros((len(next(iter(table.values()))), 0))
    return np.concatenate([values.astype(np.float64).reshape(len(values), -1) for values in parameters], axis=1)


def _lower(values: Array) -> Array:
    return np.sort(values, axis=0)[(len(values) - 1) // 2]


def mean(table: Table, samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """McMahan et al., arXiv:1602.05629, algorithm 1."""
    return {
        name: values.max(axis=0) if name in roles.counters else np.average(values, axis=0, weights=samples)
        for name, values in table.items()
    }


def median(table: Table, _samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """Yin et al., arXiv:1803.01498, definition 1."""
    return {
        name: _lower(values) if name in roles.counters else np.median(values, axis=0) for name, values in table.items()
    }


def trimmed_mean(table: Table, samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """Yin et al., arXiv:1803.01498, definition 2, a fifth at either end, rounded up."""
    count = len(samples)
    trim = min(-(-count // 5), (count - 1) // 2)
    return {
        name: _lower(values) if name in roles.counters else np.sort(values, axis=0)[trim : count - trim].mean(axis=0)
        for name, values in table.items()
    }


def _mean_of(table: Table, chosen: Sequence[int], roles: Roles) -> dict[str, Array]:
    rows = list(chosen)
    return {
        name: _lower(values[rows]) if name in roles.counters else values[rows].astype(np.float64).mean(axis=0)
        for name, values in table.items()
    }


def krum_order(vectors: Array, byzantine: int) -> list[int]:
    """Blanchard et al., arXiv:1703.02757, section 4: all by their score."""
    count = len(vectors)
    apart = [[float(((one - other) ** 2).sum()) for other in vectors] for one in vectors]
    scores = []
    for one in range(count):
        others = sorted(apart[one][other] for other in range(count) if other != one)
        scores.append((sum(others[: max(count - byzantine - 2, 1)]), sum(others), one))
    return [one for _, _, one in sorted(scores)]


def krum(table: Table, samples: Sequence[int], roles: Roles, byzantine: int = 1) -> dict[str, Array]:
    """Krum; too few votes: the median."""
    if len(samples) < 2 * byzantine + 3:
        return median(table, samples, roles)
    return _mean_of(table, krum_order(_vectors(table, roles), byzantine)[:1], roles)


def multi_krum(table: Table, samples: Sequence[int], roles: Roles, byzantine: int = 1) -> dict[str, Array]:
    """Multi-Krum with m = n - f - 2."""
    if len(samples) < 2 * byzantine + 3:
        return median(table, samples, roles)
    chosen = krum_order(_vectors(table, roles), byzantine)[: len(samples) - byzantine - 2]
    return _mean_of(table, chosen, roles)


def bulyan(table: Table, samples: Sequence[int], roles: Roles, byzantine: int = 1) -> dict[str, Array]:
    """El Mhamdi et al., arXiv:1802.07927, section 4."""
    if len(samples) < 4 * byzantine + 3:
        return median(table, samples, roles)
    vectors, left, chosen = _vectors(table, roles), list(range(len(samples))), list[int]()
    while len(chosen) < len(samples) - 2 * byzantine:
        best = left[krum_order(vectors[left], byzantine)[0]]
        chosen.append(best)
        left.remove(best)
    found = {}
    for name, values in table.items():
        kept = values[chosen]
        if name in roles.counters:
            found[name] = _lower(kept)
            continue
        kept = np.sort(kept.astype(np.float64), axis=0)  # of two that are as far, the smaller one
        distance = np.abs(kept - np.median(kept, axis=0))
        closest = np.argsort(distance, axis=0, kind="stable")[: len(chosen) - 2 * byzantine]
        found[name] = np.take_along_axis(kept, closest, axis=0).mean(axis=0)
    return found


def _unflattened(point: Array, table: Table, roles: Roles, samples: Sequence[int]) -> dict[str, Array]:
    found, start = median(table, samples, roles), 0
    for name, values in table.items():
        if name not in roles.buffers | roles.counters:
            size = values[0].size
            found[name] = point[start : start + size].reshape(values.shape[1:])
            start += size
    return found


def geometric_median(table: Table, samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """Pillutla et al., arXiv:1912.13445, algorithm 2, from the median on, until steps are short."""
    vectors = _vectors(table, roles)
    point = np.median(vectors, axis=0)
    distances = np.linalg.norm(vectors - point, axis=1)
    typical = _lower(distances)
    if len(samples) >= 3 and typical > 0:
        for _ in range(16):
            weights = 1 / np.maximum(distances, 1e-6 * typical)
            before, point = point, weights @ vectors / weights.sum()
            distances = np.linalg.norm(vectors - point, axis=1)
            if np.linalg.norm(point - before) <= 1e-3 * typical:
                break
    return _unflattened(point, table, roles, samples)


def clipped_mean(vectors: Array, centre: Array, bound: float | None = None) -> Array:
    """Karimireddy et al., arXiv:2012.10333, equation of section 4; around zero: Sun et al., arXiv:1911.07963, section
    4."""
    apart = vectors - centre
    norms = np.linalg.norm(apart, axis=1)
    limit = _lower(norms) if bound is None else bound
    shares = np.array([min(1.0, limit / norm) if norm else 1.0 for norm in norms])
    moved: Array = centre + (shares[:, None] * apart).mean(axis=0)
    return moved


def norm_bounding(table: Table, samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """Norm bounding, and centered clipping before the first round."""
    vectors = _vectors(table, roles)
    return _unflattened(clipped_mean(vectors, np.zeros(vectors.shape[1])), table, roles, samples)


def momentum_of(shape: tuple[int, ...]) -> Array:
    """Return the momentum beside which the reference turns updates: one for each shape, about as long as an update."""
    return np.random.default_rng(len(shape)).normal(size=shape) * 4


def turned(update: Array, momentum: Array, o: Mapping[str, float]) -> Array:
    """Return one tensor of an update beside a momentum, as arXiv:2606.00271 has it in others' code."""
    length, pace = np.linalg.norm(update), np.linalg.norm(momentum)
    if length == 0 or pace == 0:
        return update
    u, v = update / length, momentum / pace
    c, conf = np.vdot(u, v), length / (length + o["kappa"] * pace + o["eps"])
    if c >= o["c_ok"]:
        return update
    if c < 0:
        return update - min(o["k_s"] * -c * conf, o["beta_max"]) * c * length * v
    share = min(o["k_d"] * (1 - c) * conf, 1)
    w = (1 - share) * u + share * v
    return length * w / max(np.linalg.norm(w), o["eps"])


def turned_mean(table: Table, samples: Sequence[int], roles: Roles) -> dict[str, Array]:
    """The weighted mean of updates that are turned towards ``momentum_of``, with the defaults."""
    o = {"c_ok": 0.2, "k_s": 0.5, "k_d": 1, "kappa": 3, "beta_max": 0.5, "eps": 1e-8}
    beside = {
        name: values
        if name in roles.buffers | roles.counters
        else np.stack([turned(value.astype(np.float64), momentum_of(value.shape), o) for value in values])
        for name, values in table.items()
    }
    return mean(beside, samples, roles)


REFERENCES: dict[str, Reference] = {
    "mean": mean,
    "turned mean": turned_mean,
    "median": median,
    "trimmed mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "bulyan": bulyan,
    "geometric median": geometric_median,
    "centered clipping": norm_bounding,
    "norm bounding": norm_bounding,
}
