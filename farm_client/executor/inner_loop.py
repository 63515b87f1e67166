"""The local steps of weights mode: what is called around an optimizer's step, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from farm_client.executor.contract import Contract
from farm_client.executor.failures import calling
from farm_client.executor.gradient import BatchGradient
from farm_client.executor.layout import ModelTensors
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.step_metrics import Number
from farm_client.executor.step_rules import StepRules


@dataclass
class InnerLoop:
    """Takes the local steps of one round: zero_grad, forward and backward, the recipe's rules, the optimizer's step."""

    contract: Contract
    tensors: ModelTensors
    optimizers: Optimizers
    rules: StepRules
    gradient: BatchGradient
    untouched: set[str] = field(default_factory=set)
    """The parameters that no step had a gradient of."""

    def begin(self) -> None:
        """Begin a round."""
        self.untouched = set(self.tensors.parameters)

    def stateful(self) -> dict[str, torch.optim.Optimizer]:
        """Return what has a state that a plain loop would keep from step to step, by name."""
        return dict(self.optimizers.by_name)

    def step(self, batch: Any, number: int) -> dict[str, Number]:
        """Take one step, the round's ``number``-th from 1; return the loss and its metrics.

        Raises: CodeError, LossNotFinite.
        """
        optimizer = self.optimizers.only
        with calling("optimizer.zero_grad()", self.contract.code_dir):
            optimizer.zero_grad(set_to_none=True)
        metrics = self.gradient.add(batch, number)
        self._see_gradients()
        self.rules.before_step(self.tensors.parameters.values())
        with calling("optimizer.step()", self.contract.code_dir):
            optimizer.step()
        return metrics

    def _see_gradients(self) -> None:
        self.untouched = {name for name in self.untouched if self.tensors.parameters[name].grad is None}
