"""Sample-weighted means of metrics, and what counts as a batch's samples."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import torch

MAX_METRICS: Final = 100
"""As many as a result message may carry."""


class WeightedMeans:
    """Means of named values, each weighted by the samples it stands for."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._samples: dict[str, int] = {}

    def add(self, values: Mapping[str, float], samples: int) -> None:
        """Add one batch's values; a name may be missing from some batches."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * samples
            self._samples[name] = self._samples.get(name, 0) + samples

    def so_far(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the weighted sums, and the samples of each, by name."""
        return dict(self._sums), dict(self._samples)

    def go_on(self, sums: Mapping[str, float], samples: Mapping[str, int]) -> None:
        """Go on from what ``so_far`` returned."""
        self._sums, self._samples = dict(sums), dict(samples)

    def result(self) -> dict[str, float]:
        """Return the mean of each name over the samples that had it."""
        return {name: total / self._samples[name] for name, total in self._sums.items()}


def as_number(value: Any) -> float:
    """Return one number as a float, out of its graph if it is a tensor. Raises: TypeError, ValueError."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def reportable(values: Mapping[str, float], of: str) -> dict[str, float]:
    """Return the values that can be reported; what is left out is noted in the researcher's log.

    Left out: NaN and infinite values, which have no JSON form, and all after the first ``MAX_METRICS``.
    """
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    for name in values.keys() - finite.keys():
        remark(f"{of} {name!r} is {values[name]} and was left out")
    if len(finite) > MAX_METRICS:
        remark(f"{of}: {len(finite)} values are too many; the first {MAX_METRICS} were kept")
    return dict(islice(finite.items(), MAX_METRICS))


def remark(text: str) -> None:
    """Write a note into the researcher's log, if their code left a stream to write it to."""
    with suppress(Exception):
        sys.stderr.write(f"note: {text}\n")


def count_samples(batch: Any) -> int:
    """Return a batch's first dimension, found at its first tensor or list; 1 where there is none."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        return count_samples(next(iter(batch.values()), None))
    if isinstance(batch, Sequence) and batch and not isinstance(batch, str):
        return len(batch) if isinstance(batch[0], str) else count_samples(batch[0])
    return 1


def describe_batch(batch: Any) -> str:
    """Return a batch's names, shapes and dtypes in one clause, for error messages."""
    if isinstance(batch, torch.Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{name}: {describe_batch(value)}" for name, value in batch.items()) + "}"
    if isinstance(batch, tuple | list) and batch and not isinstance(batch[0], str):
        return "(" + ", ".join(describe_batch(value) for value in batch) + ")"
    return f"{len(batch)} strings" if isinstance(batch, list) else type(batch).__name__
