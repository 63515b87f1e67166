"""Learning-rate schedulers, which the farm does not step: finds one that has left its mark on an optimizer.

A scheduler sets the rate to its first value when it is made (0 for a warm-up) and keeps the optimizer's own rate as
``initial_lr`` in each parameter group. torch's and all that follow its habit are found by that entry.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from farm_client.executor.failures import CodeError
from farm_client.executor.omissions import SCHEDULE, Omission

Progress = tuple[tuple[str, int, int], ...]
"""Of each scheduler: its class, the steps that it counted, and its last epoch."""


def schedulers_of(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    """Return the living schedulers of an optimizer, whoever holds them."""
    # By type(): isinstance asks proxies for their __class__, which may run code of theirs. Hundreds of thousands of
    # objects live beside torch, of few types: where none is a scheduler's, no object is looked at in Python.
    things = gc.get_objects()
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, LRScheduler)}
    if not kinds:
        return []
    return [thing for thing in things if type(thing) in kinds and getattr(thing, "optimizer", None) is optimizer]


def progress_of(optimizers: Iterable[torch.optim.Optimizer]) -> Progress:
    """Return how far the optimizers' schedulers are: compared before and after training, who steps them is seen."""
    return tuple(
        sorted(
            (type(s).__name__, int(getattr(s, "_step_count", 0)), int(getattr(s, "last_epoch", 0)))
            for optimizer in optimizers
            for s in schedulers_of(optimizer)
        )
    )


def unstepped_schedule(optimizers: Iterable[torch.optim.Optimizer], progress: Progress) -> Omission | None:
    """Return the schedule of these optimizers, of ``progress``, that nobody will step; None if they have none."""
    names = sorted({name for name, _, _ in progress})
    all_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    groups = [group for group in all_groups if "initial_lr" in group]
    if not names and not groups:
        return None
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(_number(_initial(group)) for group in groups))
    present = ", ".join(f"{rate:g}" for rate in dict.fromkeys(_number(group["lr"]) for group in groups))
    stays = f", and the rate would stay at its first value, {present}" if rates != present else ""
    constant = rates or ", ".join(f"{_number(group['lr']):g}" for group in all_groups[:1])
    return Omission(
        SCHEDULE,
        f"a learning-rate scheduler ({', '.join(names) or 'one that left initial_lr behind'}) was made, which the farm "
        f"does not step{stays}: return it from build_scheduler(optimizer, config), or train at the constant rate "
        f"{constant}",
        changes_training=True,
    )


def by_metric_schedule(name: str) -> Omission:
    """Return a scheduler whose steps follow a metric."""
    return Omission(
        SCHEDULE,
        f"the scheduler {name} follows a metric, and the farm's schedules follow the global step alone: use one that "
        "does, or train at a constant rate",
        changes_training=True,
    )


def refuse_beside(name: str, returned: Sequence[object], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Raise CodeError if the code has a scheduler, returned or only made, beside the one that the recipe names."""
    optimizers = list(optimizers)
    if returned or progress_of(optimizers) or any("initial_lr" in g for o in optimizers for g in o.param_groups):
        raise CodeError(
            f"the recipe's schedule is {name}, and the code has a learning-rate scheduler: leave one of them out, or "
            "ignore that of the code (--ignore schedule)"
        )


def hold_initial_rate(optimizer: torch.optim.Optimizer) -> None:
    """Undo what schedulers did to the rate when they were made: each group trains at its ``initial_lr``."""
    for group in optimizer.param_groups:
        if "initial_lr" not in group:
            continue
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(_number(group["initial_lr"]))
        else:
            group["lr"] = group["initial_lr"]


def _initial(group: Mapping[str, Any]) -> Any:
    return group.get("initial_lr", group["lr"])


def _number(rate: Any) -> float:
    return float(rate.detach() if isinstance(rate, torch.Tensor) else rate)
