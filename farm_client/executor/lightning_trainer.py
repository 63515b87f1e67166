"""What a LightningModule finds as ``self.trainer`` on the farm, by Lightning's names: Lightning is never imported.

``optimizers()``, ``lr_schedulers()``, ``manual_backward``, ``toggle_optimizer``, ``clip_gradients``, ``global_step``
and ``current_epoch`` of Lightning's class read all of this from its Trainer. What the farm can't tell is an error by
name, which says what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NoReturn, Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from farm_client.executor.lightning_hooks import lightning_base
from farm_client.executor.timeline import Place
from protocol.recipe import Precision
from protocol.task_length import TaskLength

_PRECISIONS: Final = MappingProxyType(
    {Precision.FP32: "32-true", Precision.BF16: "bf16-mixed", Precision.FP16: "16-mixed"}
)
_LOOK_AT_BATCHES: Final = "self.trainer.num_training_batches says how many batches an epoch has"
_INSTEAD: Final = MappingProxyType(
    {
        "fit_loop": _LOOK_AT_BATCHES,
        **dict.fromkeys(("callback_metrics", "logged_metrics"), "keep in the module what you log, if you need it"),
        **dict.fromkeys(("save_checkpoint", "checkpoint_callback"), "the farm keeps them: keep_every, keep_best"),
        **dict.fromkeys(("should_stop", "early_stopping_callback"), "give the recipe a patience or a target"),
        **dict.fromkeys(("default_root_dir", "log_dir", "ckpt_path"), "leave files by on_epoch_end"),
        **dict.fromkeys(("datamodule", "val_dataloaders"), "put what it knows into [config]"),
    }
)
"""What to do without names that modules ask for."""


class ClipAlgorithm(StrEnum):
    """What ``gradient_clip_val`` limits."""

    NORM = "norm"
    VALUE = "value"


class Stepper(Protocol):
    """The loop that trains."""

    def backward(self, loss: torch.Tensor, *args: Any, **options: Any) -> None:
        """Compute gradients, with the hooks around that; the loss is scaled already."""

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return a loss as it is to be differentiated."""

    def step_optimizer(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], **options: Any) -> Any:
        """Call the closure, and step."""


class SteppedOptimizer:
    """An optimizer as modules get it: ``step`` goes through the loop. All else is the optimizer's own."""

    def __init__(self, optimizer: torch.optim.Optimizer, trainer: TrainerView) -> None:
        self.optimizer = optimizer
        self._view = trainer
        kind = type(optimizer)
        # A subclass of the optimizer's own, as with Lightning: isinstance holds, and methods find its attributes.
        self.__class__ = type(kind.__name__, (type(self), kind), {})

    def __getattr__(self, name: str) -> Any:
        """Return what only the optimizer has."""
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure: Callable[[], Any] = lambda: None, **options: Any) -> Any:
        """Take a step, after the closure and the hooks."""
        return self._view.training_loop.step_optimizer(self.optimizer, closure, **options)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Have only this optimizer's parameters get gradients meanwhile."""
        module: Any = self._view.lightning_module
        module.toggle_optimizer(self)
        yield
        module.untoggle_optimizer(self)


@dataclass(frozen=True)
class ScheduledBy:
    """A scheduler, where Lightning keeps its configuration."""

    scheduler: Any


class EpochLoader:
    """Stands in for the training loader, of which modules want to know how long it is: a client has none."""

    def __init__(self, trainer: TrainerView) -> None:
        self._view = trainer

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return self._view.num_training_batches

    def __iter__(self) -> Iterator[Any]:
        """Raises: RuntimeError; a step gets its batch."""
        raise RuntimeError(
            "self.trainer.train_dataloader has a length and no batches on the farm: they come to the steps"
        )

    def __getattr__(self, name: str) -> Any:
        """Say what there is no answer to."""
        return self._view.miss(f"train_dataloader.{name}", "put what it says into [config]")


class TrainerView:
    """Stands in for the Trainer of one module. Counters are the task's: of its epochs and its global steps."""

    __slots__ = (
        *("_length", "_lightning_optimizers", "_loop", "_schedulers", "begun_epoch", "current_epoch", "global_step"),
        *("gradient_clip_algorithm", "gradient_clip_val", "is_last_batch", "lightning_module", "missed", "optimizers"),
        *("precision", "training", "validating", "was_asked_for_length"),
    )
    accumulate_grad_batches: Final = 1
    barebones: Final = False
    callbacks: Final = ()
    fast_dev_run: Final = False
    global_rank: Final = 0
    is_global_zero: Final = True
    limit_train_batches: Final = 1.0
    local_rank: Final = 0
    logger: Final = None
    loggers: Final = ()
    min_epochs: Final = 0
    min_steps: Final = None
    node_rank: Final = 0
    num_devices: Final = 1
    num_nodes: Final = 1
    predicting: Final = False
    progress_bar_callback: Final = None
    sanity_checking: Final = False
    testing: Final = False
    world_size: Final = 1

    def __init__(self, module: nn.Module) -> None:
        self.lightning_module = module
        self.current_epoch = self.global_step = 0
        self.begun_epoch: int | None = None
        """The epoch whose start the module was told of last."""
        self.optimizers: list[torch.optim.Optimizer] = []
        self._lightning_optimizers: list[SteppedOptimizer] = []
        self._schedulers: list[ScheduledBy] | None = None
        self._loop: Stepper | None = None
        self._length: TaskLength | None = None
        self.was_asked_for_length = False
        self.missed = ""
        """What was said last of a name that there is no answer to."""
        self.precision = _PRECISIONS[Precision.FP32]
        self.gradient_clip_val: float | None = None
        self.gradient_clip_algorithm: ClipAlgorithm | None = None
        self.is_last_batch = self.training = self.validating = False

    def __getattr__(self, name: str) -> Any:
        """Say what there is no answer to."""
        self.miss(name, _INSTEAD.get(name, "do without it, or put it into [config]"))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is known. Raises: AttributeError naming what is not."""
        try:
            super().__setattr__(name, value)
        except AttributeError:
            instead = _INSTEAD.get(name, "do without it")
            raise AttributeError(f"self.trainer.{name} can't be set on the farm: {instead}") from None

    def miss(self, name: str, instead: str) -> NoReturn:
        """Raises: AttributeError saying that the farm does not know this of the Trainer, and what to do instead."""
        self.missed = f"self.trainer.{name} is not known on the farm: {instead}"
        raise AttributeError(self.missed)

    @property
    def train_dataloader(self) -> EpochLoader:
        """Return what has the length of the training loader."""
        return EpochLoader(self)

    def tell(self, length: TaskLength | None, precision: Precision) -> None:
        """Take what does not change during the task: how long it is, None where nobody knows, and its precision."""
        self._length, self.precision = length, _PRECISIONS[precision]

    @property
    def max_epochs(self) -> int:
        """Return how many passes the task makes, a begun one included; -1 where it has no end."""
        length = self._known_length("max_epochs")
        return -1 if length.is_endless else length.epochs

    @property
    def max_steps(self) -> int:
        """Return the global steps of the task; -1 where it has no end."""
        length = self._known_length("max_steps")
        return -1 if length.is_endless else length.steps

    @property
    def num_training_batches(self) -> int:
        """Return the global steps of an epoch, its short last one included."""
        return self._known_length("num_training_batches").steps_per_epoch

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Return the global steps of the task, over which the farm's schedules go; infinity where it has no end.

        As Lightning's: the lesser of ``max_steps`` and all batches of all epochs.
        """
        length = self._known_length("estimated_stepping_batches")
        return float("inf") if length.is_endless else length.steps

    def _known_length(self, name: str) -> TaskLength:
        """Raises: RuntimeError where an older server does not say it."""
        self.was_asked_for_length = True
        if self._length is None:
            raise RuntimeError(f"self.trainer.{name} is not known: this farm's server does not say how long a task is")
        return self._length

    def at(self, place: Place) -> None:
        """Move on to a place of the task."""
        self.global_step, self.current_epoch = place

    def train_with(
        self, loop: Stepper, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any] | None
    ) -> None:
        """Give the module these optimizers; the schedulers too where it steps them itself, None where it does not."""
        self._loop = loop
        self.optimizers = list(optimizers)
        self._lightning_optimizers = [SteppedOptimizer(optimizer, self) for optimizer in optimizers]
        self._schedulers = None if schedulers is None else [ScheduledBy(one) for one in schedulers]

    @property
    def training_loop(self) -> Stepper:
        """Return the loop. Raises: RuntimeError outside of training."""
        if self._loop is None:
            raise RuntimeError("there are no optimizers outside of training")
        return self._loop

    @property
    def stepped_optimizers(self) -> list[SteppedOptimizer]:
        """Return the optimizers as the module gets them."""
        return self._lightning_optimizers

    @property
    def lr_scheduler_configs(self) -> list[ScheduledBy]:
        """Return the schedulers that the module steps. Raises: RuntimeError where the farm follows them."""
        if self._schedulers is None:
            raise RuntimeError(
                "self.lr_schedulers() is for manual optimization: the farm's schedules follow the global step, and the "
                "rate is in self.optimizers().param_groups"
            )
        return self._schedulers

    @property
    def strategy(self) -> _Strategy:
        """Return where Lightning's class looks for optimizers and the backward pass."""
        return _Strategy(self)

    @property
    def precision_plugin(self) -> _Precision:
        """Return where Lightning's class clips gradients."""
        return _Precision()


@dataclass(frozen=True)
class _Strategy:
    trainer: TrainerView

    @property
    def _lightning_optimizers(self) -> list[SteppedOptimizer]:
        return self.trainer.stepped_optimizers

    @property
    def root_device(self) -> torch.device:
        return next(self.trainer.lightning_module.parameters()).device

    def backward(self, loss: torch.Tensor, _optimizer: object = None, *args: Any, **options: Any) -> None:
        """Differentiate for ``manual_backward``."""
        loop = self.trainer.training_loop
        loop.backward(loop.scaled(loss), *args, **options)

    def all_gather(self, tensor: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor:
        """Return what one process gathers."""
        return tensor


class _Precision:
    def clip_gradients(self, optimizer: torch.optim.Optimizer, limit: float = 0.0, algorithm: str = "norm") -> None:
        """Clip the gradients of an optimizer's parameters; not at all by 0."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if limit <= 0:
            return
        if algorithm == ClipAlgorithm.VALUE:
            clip_grad_value_(parameters, limit)
        else:
            clip_grad_norm_(parameters, limit)


def missed_in_a_property(model: nn.Module, error: BaseException) -> str:
    """Return in brackets what the Trainer could not tell, where a module's property asked; empty where none did.

    torch says of such a property that the module has no attribute of its name, and nothing of the error in it.
    """
    missed = trainer_view(model).missed
    if not (missed and isinstance(error, AttributeError)):
        return ""
    text = str(error)
    names = [name for base in type(model).__mro__ for name, thing in vars(base).items() if isinstance(thing, property)]
    return f" ({missed})" if missed not in text and any(f"'{name}'" in text for name in names) else ""


def trainer_view(model: nn.Module) -> TrainerView:
    """Return what stands in for the Trainer of this model, which has it as ``self.trainer`` from now on.

    A module that has Lightning's steps by name alone has no such attribute, and gets none.
    """
    known = vars(model).get("_farm_trainer")
    if isinstance(known, TrainerView) and known.lightning_module is model:
        return known
    view = TrainerView(model)
    object.__setattr__(model, "_farm_trainer", view)  # past nn.Module's own attribute handling
    if lightning_base(type(model), "trainer") is not None:
        model.trainer = view  # type: ignore[assignment]
    return view
