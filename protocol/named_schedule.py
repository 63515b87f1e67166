"""Learning-rate schedules by name: the optimizer's own rate times a pure function of the global step.

The curves are those of ``torch.optim.lr_scheduler``'s closed forms, over as many steps as the task has.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from pydantic import model_validator

from protocol.bounds import Power, Share, StepsOrShare
from protocol.frozen import Frozen


class ScheduleName(StrEnum):
    """The shape of the curve after its warm-up."""

    CONSTANT = "constant"
    """1 to the end: with a ``warmup`` that alone."""
    LINEAR = "linear"
    """Straight down to ``end``."""
    COSINE = "cosine"
    """Half a wave down to ``end``."""
    STEP = "step"
    """Times ``gamma`` after ``every`` so many steps."""
    POLYNOMIAL = "polynomial"
    """Down to ``end`` by the ``power`` of what is left."""
    ONE_CYCLE = "one_cycle"
    """Half a wave up from ``start``, over ``warmup``, and half a wave down to ``end``; the momentum the other way."""


_FALLING: Final = frozenset({ScheduleName.LINEAR, ScheduleName.COSINE, ScheduleName.POLYNOMIAL, ScheduleName.ONE_CYCLE})
_STEPPED: Final = frozenset({ScheduleName.STEP})
_CYCLED: Final = frozenset({ScheduleName.ONE_CYCLE})
_SHAPES_WITH: Final = {
    "end": _FALLING,
    "gamma": _STEPPED,
    "every": _STEPPED,
    "power": frozenset({ScheduleName.POLYNOMIAL}),
    "cycle_momentum": _CYCLED,
    "base_momentum": _CYCLED,
    "max_momentum": _CYCLED,
}
_ONE_CYCLE: Final = {
    "warmup": 0.3,
    "start": 1 / 25,
    "end": 1 / 25 / 1e4,
    "base_momentum": 0.85,
    "max_momentum": 0.95,
}
"""What ``OneCycleLR`` does where nothing is said."""


class NamedSchedule(Frozen):
    """The factor on each parameter group's own learning rate.

    ``warmup`` and ``every`` are global steps, or, below 1, a share of the task's. ``start`` is the factor that a
    warm-up begins with, ``end`` the one that is left at the end.
    """

    name: ScheduleName = ScheduleName.CONSTANT
    warmup: StepsOrShare | None = None
    """None: there is none; of one_cycle 0.3."""
    start: Share | None = None
    """0; of one_cycle 1/25."""
    end: Share | None = None
    """0; of one_cycle 1/250000."""
    every: StepsOrShare | None = None
    """A third of the task."""
    gamma: Share | None = None
    """0.1."""
    power: Power | None = None
    """1, which is linear."""
    cycle_momentum: bool | None = None
    """Whether one_cycle moves the momentum too, or what stands for it, Adam's first beta: it does."""
    base_momentum: Share | None = None
    """What it is at the highest rate: 0.85."""
    max_momentum: Share | None = None
    """What it begins and ends with: 0.95."""

    @model_validator(mode="after")
    def _has_what_its_shape_has(self) -> NamedSchedule:
        for option, shapes in _SHAPES_WITH.items():
            if getattr(self, option) is not None and self.name not in shapes:
                raise ValueError(f"{option} is for {' and '.join(sorted(shapes))}, and the schedule is {self.name}")
        if self.start is not None and not self.warmup and self.name is not ScheduleName.ONE_CYCLE:
            raise ValueError("start is what a warm-up begins with: give warmup, in steps or as a share of the task")
        for option, value in (("warmup", self.warmup), ("every", self.every)):
            if value is not None and value > 1 and value != int(value):
                raise ValueError(f"{option} is {value:g}: write whole steps, or a share of the task below 1")
        if self.cycle_momentum is False and (self.base_momentum is not None or self.max_momentum is not None):
            raise ValueError("cycle_momentum is false, so the momentum stays: leave out base_momentum and max_momentum")
        if self.moves_momentum and self.momentum_range[0] == self.momentum_range[1]:
            raise ValueError(
                "base_momentum is max_momentum: write cycle_momentum = false, and give it to the optimizer"
            )
        if self.every == 0:
            raise ValueError("every is 0: write after how many steps the rate falls")
        return self

    def warmup_steps(self, steps: int) -> int:
        """Return how many of a task's ``steps`` its warm-up takes."""
        return _steps_of(self._said("warmup", self.warmup, 0.0), steps)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor at a step, from 0 on, of a task of ``steps``; after them the last one stays.

        Source: torch.optim.lr_scheduler, whose LinearLR from ``start`` is the warm-up, by SequentialLR.
        """
        start, end = self._said("start", self.start, 0.0), self._said("end", self.end, 0.0)
        if self.name is ScheduleName.ONE_CYCLE:
            return self._cycle(step, steps, (start, 1.0, end))
        step, rise = min(step, steps - 1), self.warmup_steps(steps)
        if step < rise:
            return start + (1.0 - start) * step / rise
        return self._after_warmup(step - rise, rise, steps, end)

    @property
    def moves_momentum(self) -> bool:
        """Whether it sets the optimizer's momentum as well."""
        return self.name is ScheduleName.ONE_CYCLE and self.cycle_momentum is not False

    @property
    def momentum_range(self) -> tuple[float, float]:
        """Return the momentum at the highest rate, and the one at either end."""
        base = self._said("base_momentum", self.base_momentum, 0.0)
        return base, self._said("max_momentum", self.max_momentum, 0.0)

    def momentum(self, step: int, steps: int) -> float:
        """Return the momentum at a step, or Adam's first beta, where it ``moves_momentum``: low where the rate is high.

        Source: torch.optim.lr_scheduler.OneCycleLR, after L. N. Smith and N. Topin, "Super-Convergence" (2017).
        """
        base, most = self.momentum_range
        return self._cycle(step, steps, (most, base, most))

    def _cycle(self, step: int, steps: int, places: tuple[float, float, float]) -> float:
        """Return a step's value on one_cycle's two half waves; ``places``: at its first step, its turn, its last."""
        first, turn, last = places
        step, top = min(step, steps - 1), self.warmup_steps(steps) - 1  # it turns at the last step of the rise
        if step <= top:
            return _half_wave(first, turn, step / top if top else 1.0)
        return _half_wave(turn, last, (step - top) / (steps - 1 - top))

    def _after_warmup(self, passed: int, rise: int, steps: int, end: float) -> float:
        if self.name is ScheduleName.CONSTANT:
            return 1.0
        if self.name is ScheduleName.STEP:
            gamma, every = 0.1 if self.gamma is None else self.gamma, 1 / 3 if self.every is None else self.every
            return float(gamma ** (passed // max(_steps_of(every, steps), 1)))
        share = passed / (steps - rise)
        if self.name is ScheduleName.COSINE:
            return _half_wave(1.0, end, share)
        power = 1.0 if self.power is None else self.power
        return float(end + (1.0 - end) * (1.0 - share) ** power)

    def _said(self, option: str, value: float | None, default: float) -> float:
        if value is not None:
            return value
        return _ONE_CYCLE[option] if self.name is ScheduleName.ONE_CYCLE else default


def _steps_of(value: float, steps: int) -> int:
    return round(value * steps) if value < 1 else int(value)


def _half_wave(before: float, after: float, share: float) -> float:
    return after + (before - after) * (1.0 + math.cos(math.pi * share)) / 2.0
