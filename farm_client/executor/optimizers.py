"""The inner optimizers of a task: one, or several for code that steps them itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from farm_client.executor.failures import CodeError


@dataclass(frozen=True)
class Optimizers:
    """What ``build_optimizer`` gave back (``given``: an optimizer, or a tuple, list or dict of some), and by name."""

    given: Any
    by_name: Mapping[str, torch.optim.Optimizer]

    @classmethod
    def of(cls, given: Any) -> Optimizers:
        """Name the optimizers of what ``build_optimizer`` gave back. Raises: CodeError if it is none."""
        match given:
            case torch.optim.Optimizer():
                return cls(given, {"optimizer": given})
            case Mapping():
                named = {f"optimizer.{key}": one for key, one in given.items()}
            case tuple() | list():
                named = {f"optimizer.{number}": one for number, one in enumerate(given)}
            case _:
                raise CodeError(f"build_optimizer must return a torch optimizer, it returned {type(given).__name__}")
        if not named:
            raise CodeError("build_optimizer returned no optimizer")
        for name, one in named.items():
            if not isinstance(one, torch.optim.Optimizer):
                place = name.removeprefix("optimizer.")
                raise CodeError(
                    f"build_optimizer must return torch optimizers, and {place} is of type {type(one).__name__}"
                )
        return cls(given, named)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.by_name.values())

    @property
    def only(self) -> torch.optim.Optimizer:
        """Return the one optimizer. Raises: CodeError if there are several."""
        if len(self.by_name) > 1:
            raise CodeError(
                f"build_optimizer returned {len(self.by_name)} optimizers, and the farm's loop steps exactly one: add "
                "train_step(model, batch, optimizers, step), which takes the steps itself (weights mode)"
            )
        [optimizer] = self.by_name.values()
        return optimizer


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``step()`` cannot be called without an argument, as that of LBFGS."""
    # The class's own: an instance's may be the wrapper that a scheduler puts around it.
    _self, *rest = inspect.signature(type(optimizer).step).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in rest)
