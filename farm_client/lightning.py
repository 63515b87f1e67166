"""Lightning's Trainer on the farm: ``trainer = Trainer(..., callbacks=[farm.lightning.Callback()])``.

One epoch of the Trainer is one part. On a volunteer's machine the Trainer goes on for as long as parts come, whatever
its ``max_epochs``, and neither logs nor writes checkpoints; ``python train.py`` runs as if the callback were not there.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from farm_client.own_loop import Evaluate
from farm_client.trainer_parts import TrainerParts, named

# Of the two packages with the same Trainer, the one that the script has imported.
_package: Any = import_module("pytorch_lightning" if "lightning.pytorch" not in sys.modules else "lightning.pytorch")


class LightningCallback(_package.Callback):  # type: ignore[misc]  # Lightning's base class, which is not imported for types
    """Gives ``Trainer.fit`` the farm's parts. ``evaluate``: as in ``farm.parts``."""

    def __init__(self, evaluate: Evaluate | None = None) -> None:
        super().__init__()
        self._parts = TrainerParts(evaluate)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer what it does for training, and have it count its batches anew in each part."""
        if not self._parts.is_hosted:
            return
        library = import_module(f"{_package.__name__}.callbacks")
        others = (library.Checkpoint, library.ProgressBar, type(self))
        trainer.callbacks = [*(one for one in trainer.callbacks if not isinstance(one, others)), self]
        trainer.loggers = []
        trainer.num_sanity_val_steps = 0
        trainer.reload_dataloaders_every_n_epochs = 1

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Offer the model to the farm, and take the first part."""
        if not self._parts.is_hosted:
            return
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        carries = {**named("optimizer", trainer.optimizers), **(named("scheduler", schedulers) if schedulers else {})}
        self._parts.open(pl_module, {**carries, **({} if scaler is None else {"scaler": scaler})})

    def on_train_batch_end(self, *_arguments: Any) -> None:
        """Tell the farm how far the part is."""
        if self._parts.is_hosted:
            self._parts.report()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand the model in with the epoch's metrics, and take the next part."""
        if not self._parts.is_hosted:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self._parts.next(metrics):
            trainer.should_stop = True


Callback = LightningCallback
"""As scripts write it: ``farm.lightning.Callback()``."""
