"""The losses and metrics of an assignment's steps: checked and averaged without making an accelerator wait.

To read a number from an accelerator is to wait until it has done all that it was given, and then it waits for the next
step to be prepared. So numbers stay there until many are read at once, by a copy that is looked at later; each loss is
still checked before anything of the assignment is sent, and the error names its step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from farm_client.executor.failures import LossNotFinite
from farm_client.executor.means import WeightedMeans

READ_EVERY: Final = 16
"""Steps whose numbers are read together: so late, and as many steps again, is a bad loss seen on an accelerator."""

Number = float | torch.Tensor
"""A metric of a step: a tensor of one element while it is on an accelerator."""


def left_there(value: torch.Tensor) -> Number:
    """Return a tensor's one number, out of its graph; a copy that stays where it is if that is an accelerator."""
    return value.detach().reshape(()).clone() if value.is_cuda else float(value.detach())


@dataclass(frozen=True)
class _Step:
    number: int
    samples: int
    values: Mapping[str, Number]


class StepMetrics:
    """Takes each step's ``loss`` and metrics; gives their means weighted by samples.

    ``checks``: whether a loss that is not finite is an error, as in training.
    """

    def __init__(self, *, checks: bool = True) -> None:
        self._checks = checks
        self._means = WeightedMeans()
        self._unread: list[_Step] = []
        self._on_their_way: deque[_Reading] = deque()

    def add(self, step: int, values: Mapping[str, Number], samples: int) -> None:
        """Take the values of a step, counted from 1. Raises: LossNotFinite, of this step or of an earlier one."""
        self._unread.append(_Step(step, samples, values))
        if not any(isinstance(value, torch.Tensor) for value in values.values()):
            self._read_all()
        elif len(self._unread) >= READ_EVERY:
            self._on_their_way.append(_Reading(self._unread))
            self._unread = []
            while self._on_their_way and self._on_their_way[0].has_come():
                self._take(self._on_their_way.popleft())

    def result(self) -> dict[str, float]:
        """Wait for what is on its way, and return the means. Raises: LossNotFinite."""
        self._read_all()
        return self._means.result()

    def so_far(self) -> tuple[dict[str, float], dict[str, int]]:
        """Wait for what is on its way, and return sums and samples, as ``WeightedMeans``. Raises: LossNotFinite."""
        self._read_all()
        return self._means.so_far()

    def go_on(self, sums: Mapping[str, float], samples: Mapping[str, int]) -> None:
        """Go on from what ``so_far`` returned."""
        self._means.go_on(sums, samples)

    def _read_all(self) -> None:
        if self._unread:
            self._on_their_way.append(_Reading(self._unread))
            self._unread = []
        while self._on_their_way:
            self._take(self._on_their_way.popleft())

    def _take(self, reading: _Reading) -> None:
        for step, values in reading.steps():
            if self._checks and "loss" in values:
                check_loss(values["loss"], step.number)
            self._means.add(values, step.samples)


class _Reading:
    """The numbers of some steps on their way from an accelerator: one copy for each kind of number."""

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps
        self._copies: list[tuple[list[tuple[int, str]], torch.Tensor]] = []
        self._event: Any = None
        places: dict[tuple[torch.device, torch.dtype], list[tuple[int, str, torch.Tensor]]] = {}
        for index, step in enumerate(steps):
            for name, value in step.values.items():
                if isinstance(value, torch.Tensor):
                    places.setdefault((value.device, value.dtype), []).append((index, name, value.reshape(())))
        for (device, dtype), found in places.items():
            stacked = torch.stack([value for *_, value in found])
            copy = torch.empty(len(found), dtype=dtype, pin_memory=device.type == "cuda")
            self._copies.append(([(index, name) for index, name, _ in found], copy.copy_(stacked, non_blocking=True)))
            if device.type == "cuda":
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
                self._event.record()

    def has_come(self) -> bool:
        """Return whether ``steps`` would not have to wait."""
        return self._event is None or bool(self._event.query())

    def steps(self) -> list[tuple[_Step, dict[str, float]]]:
        """Wait until the numbers are here, and return them with their steps."""
        if self._event is not None:
            self._event.synchronize()
        values = [{name: v for name, v in s.values.items() if not isinstance(v, torch.Tensor)} for s in self._steps]
        for keys, copy in self._copies:
            for (index, name), number in zip(keys, copy.tolist(), strict=True):
                values[index][name] = float(number)
        ordered = [{name: found[name] for name in s.values} for s, found in zip(self._steps, values, strict=True)]
        return list(zip(self._steps, ordered, strict=True))


def check_loss(loss: float, step: int) -> None:
    """Raises: LossNotFinite naming the step, counted from 1."""
    if not math.isfinite(loss):
        raise LossNotFinite(
            f"the loss is {loss} at step {step} of the round: lower the learning rate, clip gradients in loss, "
            "and look for NaN or zero divisors in the data"
        )
