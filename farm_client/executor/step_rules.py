"""What the recipe and the schedule do around an optimizer's step: its options are set, and gradients are clipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from farm_client.executor.messages import LoadTask
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.timeline import TaskPace


@dataclass(frozen=True)
class StepRules:
    """The rules of one task in weights mode; in gradients mode the server has them."""

    clip_value: float | None
    clip_norm: float | None
    pace: TaskPace | None = None
    """Where the task has a scheduler."""

    @classmethod
    def of(cls, order: LoadTask, pace: TaskPace | None = None) -> StepRules:
        """Return the rules that the task came with."""
        return cls(order.clip_value, order.clip_norm, pace)

    def begin_step(self, optimizers: Optimizers) -> None:
        """Let the optimizers follow the schedule; call it first of all in a local step."""
        if self.pace is not None:
            self.pace.follow(optimizers.by_name.items())

    def end_step(self, samples: int) -> None:
        """Note that a local step took so many samples."""
        if self.pace is not None:
            self.pace.done_samples += samples

    @property
    def clips(self) -> bool:
        """Return whether gradients are clipped."""
        return self.clip_value is not None or self.clip_norm is not None

    def before_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip the gradients of all parameters, the elements first, then the norm; call it before every local step."""
        parameters = list(parameters)
        if self.clip_value is not None:
            clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            clip_grad_norm_(parameters, self.clip_norm)
