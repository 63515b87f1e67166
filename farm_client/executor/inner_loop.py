"""The local steps of weights mode: what is called around an optimizer's step, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from farm_client.executor.batch_states import NAME as BATCH_STATES
from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError, calling
from farm_client.executor.gradient import BatchGradient
from farm_client.executor.inner_state import Stateful
from farm_client.executor.layout import ModelTensors
from farm_client.executor.local_objective import LocalTerm
from farm_client.executor.optimizers import Optimizers, needs_closure
from farm_client.executor.step_metrics import Number
from farm_client.executor.step_rules import StepRules


@dataclass
class InnerLoop:
    """Takes the local steps of one round: by the task's ``train_step``, if it has one, else in this order.

    zero_grad, forward and backward, the recipe's local term, the task's ``on_before_step``, the recipe's rules, the
    optimizer's step.
    """

    contract: Contract
    tensors: ModelTensors
    optimizers: Optimizers
    rules: StepRules
    gradient: BatchGradient
    scaler: torch.amp.GradScaler | None = None
    untouched: set[str] = field(default_factory=set)
    """The parameters that no step had a gradient of."""
    term: LocalTerm | None = None
    """What the round's local objective has beside the loss."""

    def begin(self) -> None:
        """Begin a round. Raises: CodeError if the recipe asks for what only the farm's own steps do."""
        if self.contract.has("train_step") and self.rules.clips:
            raise CodeError("train_step takes its steps itself: clip the gradients there, and leave out clip_norm")
        if self.contract.has("train_step") and self.gradient.is_mixed:
            raise CodeError("train_step takes its steps itself: use torch.autocast there, and leave out precision")
        if self.scaler is not None and any(needs_closure(one) for one in self.optimizers):
            raise CodeError("an optimizer that needs a closure cannot scale losses for fp16: use bf16, or fp32")
        if self.term is not None and (why := self._refused_term()):
            raise CodeError(f"{why}, and {self.term.field} would be left out: leave it out of the recipe")
        self.untouched = set(self.tensors.parameters)

    def _refused_term(self) -> str | None:
        """Return which steps are not the farm's own, so that no term can be added in them; None if there are none."""
        if self.contract.has("train_step"):
            return "train_step computes its gradients itself"
        if any(needs_closure(one) for one in self.optimizers):
            return "an optimizer that needs a closure reads the loss as well as its gradient"
        return None if self.term is None else self.term.refused(self.optimizers)

    def stateful(self) -> dict[str, Stateful]:
        """Return what has a state that a plain loop would keep from step to step, by name."""
        batches = self.gradient.states
        return {
            **self.optimizers.by_name,
            **({} if self.scaler is None else {"scaler": self.scaler}),
            **({} if batches is None else {BATCH_STATES: batches}),
            **({} if self.term is None else self.term.stateful()),
        }

    def step(self, batch: Any, samples: int, number: int) -> dict[str, Number]:
        """Take one step, the round's ``number``-th from 1; return the loss and its metrics.

        Raises: CodeError, LossNotFinite.
        """
        if self.contract.has("train_step"):
            return self._own_step(batch, number)
        optimizer = self.optimizers.only
        if needs_closure(optimizer):
            return self._closure_step(batch, samples, number)
        metrics = self._new_gradient(batch, samples, number)
        with calling("optimizer.step()", self.contract.code_dir):
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
                self.scaler.update()
        return metrics

    def _own_step(self, batch: Any, number: int) -> dict[str, Number]:
        """Leave the whole step to the task's code. What it had gradients of, only it knows."""
        given, states = self.optimizers.given, self.gradient.states
        if states is None:
            metrics = self.contract.train_step(self.tensors.model, batch, given, number - 1)
        else:
            metrics = states.train_step(batch, given, number)
        self.untouched = set()
        return metrics

    def _closure_step(self, batch: Any, samples: int, number: int) -> dict[str, Number]:
        """Step an optimizer that computes the gradient several times. The metrics are those of the first time."""
        computed: list[dict[str, Number]] = []

        def closure() -> float:
            computed.append(self._new_gradient(batch, samples, number))
            return float(computed[-1]["loss"])

        with calling("optimizer.step(closure)", self.contract.code_dir):
            self.optimizers.only.step(closure)
        return computed[0] if computed else {}

    def _new_gradient(self, batch: Any, samples: int, number: int) -> dict[str, Number]:
        """Put the batch's gradient, as the optimizer is to step by it, in the place of the last one."""
        with calling("optimizer.zero_grad()", self.contract.code_dir):
            self.optimizers.only.zero_grad(set_to_none=True)
        metrics = self.gradient.add(batch, samples, number, self.scaler)
        if self.scaler is not None:
            with calling("unscaling the gradients", self.contract.code_dir):
                self.scaler.unscale_(self.optimizers.only)
        self._note_gradients()
        self.contract.on_before_step(self.tensors.model, self.optimizers.given, number - 1)
        self.rules.before_step(self.tensors.parameters.values())
        return metrics

    def _note_gradients(self) -> None:
        """Note which parameters the batch's loss depends on, and add the local term to what they have of it."""
        self.untouched = {name for name in self.untouched if self.tensors.parameters[name].grad is None}
        if self.term is not None:
            self.term.add_gradient(self.tensors.parameters, self.untouched)
