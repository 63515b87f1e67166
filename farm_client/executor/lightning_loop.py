"""A LightningModule's local steps, in the order of Lightning's own loop: its hooks, and manual optimization.

The order and the arguments are those of Lightning 2 (``loops/fit_loop.py``, ``loops/training_epoch_loop.py``,
``loops/optimization``, ``plugins/precision``); Lightning itself is never imported. A part is not an epoch: hooks of
epochs are called at the borders of the task's epochs, as far as this client sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from farm_client.executor import lightning_steps
from farm_client.executor.failures import CodeError, calling
from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.inner_state import Stateful
from farm_client.executor.lightning_hooks import is_own
from farm_client.executor.lightning_trainer import ClipAlgorithm, TrainerView, trainer_view
from farm_client.executor.step_metrics import Number


@dataclass
class LightningLoop(InnerLoop):
    """Takes the local steps of one round as ``Trainer.fit`` does."""

    _cleared: bool = field(default=False, init=False)
    """Whether the step's gradients began anew."""

    def begin(self) -> None:
        """Begin a round: tell the module of its first one, and of a new epoch. Raises: CodeError."""
        super().begin()
        if self._is_manual and self.rules.clips:
            raise CodeError("manual optimization clips itself: call self.clip_gradients, and leave out clip_norm")
        view = self._view
        schedulers = lightning_steps.manual_schedulers(self._first) if self._is_manual else None
        view.train_with(self, [*self.optimizers], schedulers)
        view.gradient_clip_val, view.gradient_clip_algorithm = self._clipping()
        self.gradient.backward = self.backward
        self._tell_of_the_epoch(view)

    def _refused_term(self) -> str | None:
        return "manual optimization computes its gradients itself" if self._is_manual else super()._refused_term()

    def stateful(self) -> dict[str, Stateful]:
        """Return what has a state: with manual optimization the schedulers too."""
        schedulers = lightning_steps.manual_schedulers(self._first) if self._is_manual else []
        return {**super().stateful(), **{f"scheduler.{number}": one for number, one in enumerate(schedulers)}}

    def step(self, batch: Any, samples: int, number: int) -> dict[str, Number]:
        """Take one step, the part's ``number``-th from 1; return the loss and what was logged."""
        view = self._view
        self._move(view)
        index = number - 1
        if self._hook("on_train_batch_start", batch, index) == -1:
            raise CodeError("on_train_batch_start returned -1, but a part of an epoch counts as a whole: return None")
        if self._is_manual:
            metrics = self._manual_step(batch)
        else:
            metrics = self._automatic_step(batch, samples, number)
            view.global_step += 1
        self._hook("on_train_batch_end", lightning_steps.outputs(self._model), batch, index)
        return {**metrics, **lightning_steps.logs_of(self._model).take()}

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Add a scaled loss's gradient to the parameters, with the hooks around it."""
        if not (self._cleared or self._is_manual):
            self._clear()
        self._hook("on_before_backward", loss)
        with calling("backward(loss)", self.contract.code_dir):
            if self._has("backward"):
                self._model.backward(loss, *arguments, **options)
            else:
                torch.autograd.backward(loss, *arguments, **options)
        self._hook("on_after_backward")

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return a loss as the loss scaler, if there is one, wants it differentiated."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step_optimizer(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], **options: Any) -> Any:
        """Call the closure, then what sees its gradients, and step: all of it inside of ``step`` without a scaler."""
        if self.scaler is None:

            def whole() -> Any:
                answer = closure()
                self._before_step(optimizer)
                return answer

            return optimizer.step(whole, **options)
        closure()
        self.scaler.unscale_(optimizer)
        self._before_step(optimizer)
        answer = self.scaler.step(optimizer, **options)
        self.scaler.update()
        return answer

    def _automatic_step(self, batch: Any, samples: int, number: int) -> dict[str, Number]:
        """Have the optimizer step by a closure that computes the gradient, which may do so several times."""
        computed: list[dict[str, Number]] = []
        [stepped] = self._view.stepped_optimizers

        def closure() -> Number:
            self._cleared = False
            if not (self._has("on_before_zero_grad") or self._has("optimizer_zero_grad")):
                self._clear()  # to the same end before the forward pass, which has room then
            computed.append(self.gradient.add(batch, samples, number, self.scaler))
            return computed[-1]["loss"]

        with calling("optimizer_step(...)", self.contract.code_dir):
            if self._has("optimizer_step"):
                self._model.optimizer_step(self._view.current_epoch, number - 1, stepped, closure)
            else:
                stepped.step(closure)
        if not computed:
            raise CodeError("optimizer_step did not call its closure, which computes the gradient")
        return computed[0]

    def _manual_step(self, batch: Any) -> dict[str, Number]:
        """Leave the step to ``training_step``. What it had gradients of, only it knows."""
        self.untouched = set()
        with self.gradient.autocast():
            return self.contract.manual_step(self._model, batch)

    def _clear(self) -> None:
        [optimizer] = self.optimizers
        self._hook("on_before_zero_grad", optimizer)
        if self._has("optimizer_zero_grad"):
            self._hook("optimizer_zero_grad", self._view.current_epoch, self._batch_index, optimizer)
        else:
            optimizer.zero_grad(set_to_none=True)
        self._cleared = True

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Show the gradients to the hooks, and clip them: the last before the optimizer takes them."""
        if not self._is_manual:
            self._note_gradients()
        self._hook("on_before_optimizer_step", optimizer)
        if self._is_manual:
            return
        self.contract.on_before_step(self._model, optimizer, self._batch_index)
        self.untouched = {name for name in self.untouched if self.tensors.parameters[name].grad is None}
        if not (self._has("configure_gradient_clipping") or self._has("clip_gradients")):
            self.rules.before_step(self.tensors.parameters.values())
            return
        limit, algorithm = self._clipping()
        with calling("configure_gradient_clipping(...)", self.contract.code_dir):
            self._model.configure_gradient_clipping(
                optimizer, gradient_clip_val=limit, gradient_clip_algorithm=algorithm
            )

    def _clipping(self) -> tuple[float | None, ClipAlgorithm | None]:
        """Return the recipe's limit as the Trainer's. Raises: CodeError if there are two for a hook that takes one."""
        rules = self.rules
        if rules.clip_norm is not None and rules.clip_value is not None and self._has("configure_gradient_clipping"):
            raise CodeError("configure_gradient_clipping takes one limit: leave out clip_norm or clip_value")
        if rules.clip_norm is not None:
            return rules.clip_norm, ClipAlgorithm.NORM
        return rules.clip_value, None if rules.clip_value is None else ClipAlgorithm.VALUE

    def _tell_of_the_epoch(self, view: TrainerView) -> None:
        """Call what belongs to the begin of training and to the epochs' borders, where the client has come to one."""
        place = None if self.rules.pace is None else self.rules.pace.place
        epoch = 0 if place is None else place.epoch
        if view.begun_epoch != epoch:
            if view.begun_epoch is None:
                self._move(view)
                self._hook("on_fit_start")
                self._hook("on_train_start")
            else:
                view.current_epoch = view.begun_epoch
                self._hook("on_train_epoch_end")
                self._move(view)
            view.begun_epoch = epoch
            self._hook("on_train_epoch_start")
        lightning_steps.logs_of(self._model).keep()

    def _move(self, view: TrainerView) -> None:
        if self.rules.pace is not None:
            view.at(self.rules.pace.place)

    def _hook(self, name: str, *arguments: Any) -> Any:
        with calling(f"{name}(...)", self.contract.code_dir):
            return lightning_steps.hook(self._model, name, *arguments)

    def _has(self, name: str) -> bool:
        return is_own(type(self._model), name)

    @property
    def _model(self) -> Any:
        return self.tensors.model

    @property
    def _view(self) -> TrainerView:
        return trainer_view(self.tensors.model)

    @property
    def _is_manual(self) -> bool:
        return lightning_steps.is_manual(self.tensors.model)

    @property
    def _first(self) -> torch.optim.Optimizer:
        return next(iter(self.optimizers))

    @property
    def _batch_index(self) -> int:
        return lightning_steps.logs_of(self._model).batch_index
