"""Hugging Face's Trainer on the farm: ``trainer = Trainer(..., callbacks=[farm.hf.Callback()])``.

One epoch of the Trainer is one part. On a volunteer's machine the Trainer goes on for as long as parts come, with the
schedule of the epochs that its arguments say, and writes no checkpoints; ``python train.py`` runs as if the callback
were not there.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Final

from farm_client.own_loop import Evaluate, PartError
from farm_client.trainer_parts import TrainerParts

_transformers: Any = import_module("transformers")
_EPOCHS: Final = 10**9
"""More than parts come."""


class HuggingFaceCallback(_transformers.TrainerCallback):  # type: ignore[misc]  # the base class is not imported for types
    """Gives ``Trainer.train`` the farm's parts. ``evaluate``: as in ``farm.parts``."""

    def __init__(self, evaluate: Evaluate | None = None) -> None:
        super().__init__()
        self._parts = TrainerParts(evaluate)
        self._epochs, self._max_steps = 0.0, -1
        self._makes_schedule = True
        self._losses: list[tuple[int, float]] = []
        self._logged_step = self._batches = 0

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the Trainer go on for as long as parts come."""
        if not self._parts.is_hosted:
            return
        self._epochs, self._max_steps = args.num_train_epochs, args.max_steps
        self._makes_schedule = kwargs.get("lr_scheduler") is None
        args.num_train_epochs, args.max_steps = _EPOCHS, -1
        args.save_strategy = type(args.save_strategy)("no")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Offer the model to the farm, and take the first part."""
        if not self._parts.is_hosted:
            return
        optimizer, scheduler = (_unwrapped(kwargs[name], name) for name in ("optimizer", "lr_scheduler"))
        self._batches = len(kwargs["train_dataloader"])
        if self._makes_schedule:
            steps = max(math.ceil(self._batches / args.gradient_accumulation_steps), 1)
            self._schedule(args, optimizer, scheduler, steps)
        self._parts.open(kwargs["model"], {"optimizer": optimizer, "scheduler": scheduler})
        self._check_accumulation(args, kwargs["train_dataloader"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the losses, each the mean of the steps since the one before."""
        if "loss" in (logs or {}):
            self._losses.append((state.global_step - self._logged_step, float(logs["loss"])))
            self._logged_step = state.global_step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the farm how far the part is."""
        if self._parts.is_hosted:
            self._parts.report()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the farm how far the part is, and have the loss of its last steps told before it ends."""
        if self._parts.is_hosted:
            self._parts.report()
            control.should_log |= self._parts.is_read

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand the model in with the mean loss, and take the next part."""
        if not self._parts.is_hosted:
            return
        steps = sum(count for count, _ in self._losses)
        metrics = {"loss": sum(count * loss for count, loss in self._losses) / steps} if steps else {}
        self._losses = []
        if self._parts.next(metrics):
            self._check_accumulation(args, kwargs["train_dataloader"])
        else:
            control.should_training_stop = True

    def _schedule(self, args: Any, optimizer: Any, scheduler: Any, steps_per_epoch: int) -> None:
        """Make the schedule that of the epochs, or steps, that the arguments said, and not of all that may come."""
        steps = self._max_steps if self._max_steps > 0 else math.ceil(self._epochs * steps_per_epoch)
        meant = _transformers.get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        vars(scheduler).update(vars(meant))  # the Trainer holds on to the one that it has made

    def _check_accumulation(self, args: Any, loader: Any) -> None:
        """Refuse a part whose last batches the Trainer would accumulate and never step by."""
        batches = len(loader)
        if batches != self._batches and batches % args.gradient_accumulation_steps:
            raise PartError(
                f"a part of {batches} batches is no multiple of gradient_accumulation_steps = "
                f"{args.gradient_accumulation_steps}, and the Trainer would leave out the last ones"
            )


Callback = HuggingFaceCallback
"""As scripts write it: ``farm.hf.Callback()``."""


def _unwrapped(thing: Any, name: str) -> Any:
    """Return what accelerate's wrapper holds."""
    return getattr(thing, "optimizer" if name == "optimizer" else "scheduler", thing)
