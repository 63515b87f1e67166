"""A task's learning-rate schedulers, followed by the global step: torch's own objects, never trained with.

They belong to optimizers of their own, which take no step: what the schedulers make of their groups at a step is set in
the optimizers that train. So the schedule depends on the step alone, and not on who trained what before.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from farm_client.executor.failures import CodeError
from farm_client.executor.optimizers import Optimizers
from protocol.named_schedule import NamedSchedule

GroupOptions = dict[str, Any]
"""The options of one parameter group, without its parameters."""


class Place(NamedTuple):
    """How far the task is: ``step`` global steps, of which a batch of the task's samples is one, and whole epochs."""

    step: int
    epoch: int


@dataclass(frozen=True)
class Scheduled:
    """One scheduler, which steps once in ``every`` global steps, or epochs."""

    scheduler: Any
    per_epoch: bool = False
    every: int = 1
    own_step: Callable[[int], None] | None = None
    """How the task's code steps it, given how often it was stepped before."""

    @classmethod
    def of(cls, given: Any) -> Scheduled:
        """Take a scheduler, or a dict of Lightning's keys with one. Raises: CodeError if it is neither."""
        settings = given if isinstance(given, Mapping) else {"scheduler": given}
        scheduler = settings.get("scheduler")
        if not callable(getattr(scheduler, "step", None)):
            raise CodeError(f"a scheduler has a step(), and build_scheduler returned {type(scheduler).__name__}")
        return cls(scheduler, settings.get("interval", "step") == "epoch", int(settings.get("frequency", 1)))

    @property
    def needs_metric(self) -> bool:
        """Return whether ``step()`` asks for a metric, as that of ReduceLROnPlateau."""
        if self.own_step is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            return False
        parameters = inspect.signature(self.scheduler.step).parameters.values()
        return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

    def steps_at(self, place: Place) -> int:
        """Return how often it has been stepped there."""
        steps = (place.epoch if self.per_epoch else place.step) // self.every
        if isinstance(self.scheduler, OneCycleLR):  # after its last step the rate would rise again, and then it raises
            return min(steps, int(self.scheduler.total_steps) - 1)
        return steps

    def advance(self, taken: int) -> None:
        """Step it, which was stepped ``taken`` times before."""
        if self.own_step is None:
            self.scheduler.step()
        else:
            self.own_step(taken)


def as_scheduled(given: Any) -> tuple[Scheduled, ...]:
    """Return the schedulers of what ``build_scheduler`` returned: one, or a list or tuple of some."""
    return tuple(Scheduled.of(one) for one in (given if isinstance(given, list | tuple) else (given,)))


def scheduled_by_name(optimizers: Optimizers, schedule: NamedSchedule, steps: int) -> tuple[Scheduled, ...]:
    """Return schedulers of these optimizers that follow the recipe's schedule over the ``steps`` of the task.

    Raises: CodeError for an optimizer that has no learning rate, or no momentum where the schedule moves it.
    """
    if rateless := [type(o).__name__ for o in optimizers if any("lr" not in group for group in o.param_groups)]:
        raise CodeError(f"the recipe's schedule scales the learning rate, and {rateless[0]} has none: leave it out")
    rates = [Scheduled(LambdaLR(one, lambda step: schedule.factor(step, steps))) for one in optimizers]
    if not schedule.moves_momentum:
        return tuple(rates)
    if without := [type(o).__name__ for o in optimizers if not {"momentum", "betas"} & o.defaults.keys()]:
        raise CodeError(
            f"the schedule {schedule.name} moves the momentum, and {without[0]} has none: write cycle_momentum = false "
            "into [recipe.schedule]"
        )
    momenta = (MomentumSchedule(one, lambda step: schedule.momentum(step, steps)) for one in optimizers)
    return (*rates, *map(Scheduled, momenta))


class MomentumSchedule:
    """Sets the momentum of an optimizer's groups, or the first of its betas, as a function of the step."""

    def __init__(self, optimizer: torch.optim.Optimizer, momentum: Callable[[int], float]) -> None:
        self._optimizer, self._momentum = optimizer, momentum
        self._steps = -1
        self.step()

    def step(self) -> None:
        """Go on to the next step."""
        self._steps += 1
        momentum = self._momentum(self._steps)
        for group in self._optimizer.param_groups:
            if "betas" in self._optimizer.defaults:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class Timeline:
    """The options of all parameter groups at any place; places mostly come in their order.

    ``build`` makes optimizers and their schedulers anew, for a place before the last one.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        schedulers: tuple[Scheduled, ...],
        build: Callable[[], tuple[Optimizers, tuple[Scheduled, ...]]],
    ) -> None:
        self._build = build
        self._optimizers, self._schedulers = optimizers, schedulers
        self._taken = [0] * len(self._schedulers)

    def options_at(self, place: Place) -> dict[str, list[GroupOptions]]:
        """Return each optimizer's groups' options, by the optimizer's name.

        A schedule that ends before the task stays as it ended.
        """
        wanted = [one.steps_at(place) for one in self._schedulers]
        if any(target < taken for target, taken in zip(wanted, self._taken, strict=True)):
            self._optimizers, self._schedulers = self._build()
            self._taken = [0] * len(self._schedulers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the steps of an optimizer that never takes one
            for number, one in enumerate(self._schedulers):
                while self._taken[number] < wanted[number]:
                    one.advance(self._taken[number])
                    self._taken[number] += 1
        return {name: _options(optimizer) for name, optimizer in self._optimizers.by_name.items()}


def _options(optimizer: torch.optim.Optimizer) -> list[GroupOptions]:
    return [{key: group[key] for key in optimizer.defaults if key in group} for group in optimizer.param_groups]


@dataclass
class TaskPace:
    """Where the local steps of an assignment are in the task, and what its schedule, if it has one, says there.

    Progress is counted in samples of the task: while a client trains on its ``own_samples`` of a round, the round's
    ``round_samples`` pass. So a schedule ends when the task does, however many clients share a round.
    """

    timeline: Timeline | None
    batch_samples: int
    samples_before: int
    round_samples: int
    own_samples: int
    epoch: int
    done_samples: int = 0

    @property
    def place(self) -> Place:
        """Return the place of the next step: the samples so far, in batches, the last of which may be a short one."""
        own = max(self.own_samples, 1)
        passed = self.samples_before * own + self.done_samples * max(self.round_samples, self.own_samples)
        return Place(-(-passed // (own * self.batch_samples)), self.epoch)

    def seek(self) -> None:
        """Step the schedulers up to the assignment's first step, which may take a while after a restart."""
        if self.timeline is not None:
            self.timeline.options_at(self.place)

    def follow(self, optimizers: Iterable[tuple[str, torch.optim.Optimizer]]) -> None:
        """Set the options of the next step in the optimizers that train."""
        if self.timeline is None:
            return
        options = self.timeline.options_at(self.place)
        for name, optimizer in optimizers:
            for group, scheduled in zip(optimizer.param_groups, options[name], strict=True):
                for key, value in scheduled.items():
                    if isinstance(group[key], torch.Tensor):
                        group[key].fill_(float(value))
                    else:
                        group[key] = value
