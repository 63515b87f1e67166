"""A LightningModule through the researcher's contract, by its methods' names: Lightning itself is never imported.

Used: ``training_step``, ``validation_step``, ``configure_optimizers``, the hooks around the former, and what they
``log``. The hooks of the training loop are ``lightning_loop``'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from farm_client.executor.lightning_hooks import is_own
from farm_client.executor.lightning_trainer import trainer_view
from farm_client.executor.means import WeightedMeans, as_number, count_samples
from farm_client.executor.timeline import Scheduled, as_scheduled
from farm_client.task import metric_name


def is_lightning(model: object) -> bool:
    """Return whether a model, or a class, has Lightning's steps."""
    return all(callable(getattr(model, name, None)) for name in ("training_step", "configure_optimizers"))


def find_lightning_class(module: ModuleType) -> type[nn.Module] | None:
    """Return the one LightningModule subclass that the researcher's file defines, or None.

    Raises: CodeError if there are several.
    """
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, nn.Module) and is_lightning(c) and c.__module__ == module.__name__
    ]
    if len(classes) > 1:
        names = ", ".join(c.__name__ for c in classes)
        raise CodeError(f"the file defines several LightningModules ({names}); add build_model(config) to choose one")
    return classes[0] if classes else None


def instantiate(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """Call the class with the config entries that its ``__init__`` takes (a parameter ``config`` gets all of them).

    Raises: CodeError naming the arguments that the config lacks.
    """
    parameters = list(inspect.signature(cls).parameters.values())
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    kwargs = {key: value for key, value in config.items() if takes_any or key in names}
    if "config" in names:
        kwargs.setdefault("config", dict(config))
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in kwargs]
    if missing:
        raise CodeError(f"{cls.__name__} needs {', '.join(missing)}: add it to the task's config")
    return cls(**kwargs)


class CapturedLogs:
    """Stands in for the Trainer's logging: ``self.log`` and ``self.log_dict`` of a model end up here.

    A metric object (torchmetrics) is asked once, at the end of an assignment: it is of all of its batches.
    """

    def __init__(self, model: nn.Module) -> None:
        self._values: dict[str, float] = {}
        self._objects: dict[str, Any] = {}
        self._after_all: dict[str, float] = {}
        self.batch_index = 0
        self.returned: Any = None
        """What the last ``training_step`` returned."""
        # Set on the instances, past nn.Module's own attribute handling: the classes keep their methods.
        for module in (model, *filter(is_lightning, model.modules())):
            object.__setattr__(module, "log", self._log)
            object.__setattr__(module, "log_dict", self._log_dict)

    def take(self) -> dict[str, float]:
        """Return what was logged since the last call."""
        values, self._values = self._values, {}
        return values

    def keep(self) -> None:
        """Keep what was logged since the last ``take``, outside of any batch, for ``finish``."""
        self._after_all |= self.take()

    def begin(self, model: nn.Module) -> None:
        """Begin an assignment: what metric objects saw in former ones is over."""
        self._values, self.batch_index, self.returned = {}, 0, None
        for metric in (*model.modules(), *self._objects.values()):
            if _is_metric(metric):
                metric.reset()
        self._objects = {}

    def finish(self) -> dict[str, float]:
        """Return the values of the metric objects that were logged, and what was logged outside of batches."""
        kept, self._after_all = self._after_all, {}
        return {**kept, **{name: as_number(metric.compute()) for name, metric in self._objects.items()}}

    def _log(self, name: str, value: Any, *_args: object, **_options: object) -> None:
        if _is_metric(value):
            self._objects[metric_name(name)] = value
        else:
            self._values[metric_name(name)] = as_number(value.compute() if hasattr(value, "compute") else value)

    def _log_dict(self, dictionary: Mapping[str, Any], *_args: object, **_options: object) -> None:
        for name, value in dictionary.items():
            self._log(name, value)


def _is_metric(thing: object) -> bool:
    """Return whether a thing gathers over batches, as a torchmetrics object does."""
    return all(callable(getattr(thing, name, None)) for name in ("update", "compute", "reset"))


def begin(model: nn.Module) -> None:
    """Begin an assignment: metric objects are reset, as the Trainer does at each epoch."""
    logs_of(model).begin(model)


def finish(model: nn.Module) -> dict[str, float]:
    """Return the values of the metric objects that the assignment logged."""
    return logs_of(model).finish()


def logs_of(model: nn.Module) -> CapturedLogs:
    """Return where a model's ``self.log`` ends up."""
    log = model.__dict__.get("log")
    captured = getattr(log, "__self__", None)
    return captured if isinstance(captured, CapturedLogs) else CapturedLogs(model)


def is_manual(model: nn.Module) -> bool:
    """Return whether ``training_step`` steps the optimizers."""
    return getattr(model, "automatic_optimization", True) is False


def hook(model: nn.Module, name: str, *arguments: Any) -> Any:
    """Call a hook that the model's own classes have; None without one."""
    return getattr(model, name)(*arguments) if is_own(type(model), name) else None


def begin_batch(model: nn.Module, batch: Any, index: int) -> Any:
    """Note a batch's place in its part, and return what the model's own hooks make of it on its way to the device."""
    logs_of(model).batch_index = index
    if is_own(type(model), "on_before_batch_transfer"):
        batch = hook(model, "on_before_batch_transfer", batch, 0)
    if is_own(type(model), "transfer_batch_to_device"):
        batch = hook(model, "transfer_batch_to_device", batch, next(model.parameters()).device, 0)
    if is_own(type(model), "on_after_batch_transfer"):
        batch = hook(model, "on_after_batch_transfer", batch, 0)
    return batch


def loss(model: Any, batch: Any) -> dict[str, Any]:
    """Run ``training_step``; the loss and what it logged, by name.

    Raises: CodeError if it returns none.
    """
    values = step(model, batch)
    if logs_of(model).returned is None:
        raise CodeError("training_step returned None: return the loss")
    return values


def step(model: Any, batch: Any) -> dict[str, Any]:
    """Run ``training_step``; the numbers that it returned and logged, by name."""
    logs = logs_of(model)
    value = model.training_step(*_step_arguments(model.training_step, batch, logs.batch_index))
    logs.returned = value
    return {**logs.take(), **({} if value is None else _numbers(value))}


def outputs(model: nn.Module) -> dict[str, Any]:
    """Return what the last ``training_step`` gave, as Lightning hands it to ``on_train_batch_end``."""
    value = logs_of(model).returned
    values = dict(value) if isinstance(value, Mapping) else {} if value is None else {"loss": value}
    return {**values, **({"loss": values["loss"].detach()} if isinstance(values.get("loss"), torch.Tensor) else {})}


def build_optimizer(model: Any, _config: Mapping[str, Any]) -> Any:
    """Return the one optimizer of ``configure_optimizers``, or a list of several for manual optimization.

    Its schedulers live as long, so that they can be found. Raises: CodeError if there is none, or more than one that
    the module does not step itself.
    """
    answer = whole = model.configure_optimizers()
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], list | tuple):
        answer = answer[0]
    found = [
        one["optimizer"] if isinstance(one, Mapping) else one
        for one in (answer if isinstance(answer, list | tuple) else [answer])
    ]
    if not found or (len(found) > 1 and not is_manual(model)):
        raise CodeError(
            f"configure_optimizers returned {len(found)} optimizers: with several, set self.automatic_optimization = "
            "False and step them in training_step, as Lightning demands"
        )
    for optimizer in found:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise CodeError(f"configure_optimizers must return an optimizer, it returned {type(optimizer).__name__}")
        optimizer.came_with = whole  # type: ignore[attr-defined]  # see schedules.schedulers_of
    return found if len(found) > 1 else found[0]


def schedulers(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[Scheduled, ...]:
    """Return the schedulers that ``configure_optimizers`` returned with this optimizer; by the epoch, as Lightning's.

    Raises: CodeError.
    """
    found = as_scheduled([_by_epoch(one) for one in _given_schedulers(optimizer)])
    if not is_own(type(model), "lr_scheduler_step"):
        return found
    return tuple(replace(one, own_step=partial(_own_scheduler_step, model, one)) for one in found)


def manual_schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the schedulers that came with this optimizer and its fellows, which the module steps itself."""
    given = _given_schedulers(optimizer)
    return [one["scheduler"] if isinstance(one, Mapping) else one for one in given]


def _given_schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    whole = getattr(optimizer, "came_with", None)
    if isinstance(whole, Mapping):
        given = whole.get("lr_scheduler") or ()
    elif isinstance(whole, tuple | list) and len(whole) == 2 and isinstance(whole[1], tuple | list):
        given = whole[1]
    else:
        given = [one["lr_scheduler"] for one in _mappings(whole) if one.get("lr_scheduler")]
    return list(given) if isinstance(given, tuple | list) else [given]


def _own_scheduler_step(model: Any, scheduled: Scheduled, taken: int) -> None:
    """Step a scheduler by ``lr_scheduler_step``, which may look at the epoch that has just ended."""
    view = trainer_view(model)
    now = view.current_epoch
    if scheduled.per_epoch:
        view.current_epoch = (taken + 1) * scheduled.every - 1
    try:
        model.lr_scheduler_step(scheduled.scheduler, None)
    finally:
        view.current_epoch = now


def _by_epoch(given: Any) -> Mapping[str, Any]:
    settings = given if isinstance(given, Mapping) else {"scheduler": given}
    return {"interval": "epoch", **settings}


def _mappings(whole: Any) -> list[Mapping[str, Any]]:
    return [one for one in whole if isinstance(one, Mapping)] if isinstance(whole, tuple | list) else []


def evaluate(model: Any, data: Iterable[Any]) -> dict[str, float]:
    """Average what ``validation_step`` returns and logs (``training_step`` where the class has none) over samples."""
    logs, means = logs_of(model), WeightedMeans()
    logs.begin(model)
    hook(model, "on_validation_start")
    hook(model, "on_validation_epoch_start")
    logs.keep()
    step = model.validation_step if is_own(type(model), "validation_step") else model.training_step
    for index, whole_batch in enumerate(data):
        samples = count_samples(whole_batch)
        batch = begin_batch(model, whole_batch, index)
        hook(model, "on_validation_batch_start", batch, index)
        value = step(*_step_arguments(step, batch, index))
        hook(model, "on_validation_batch_end", value, batch, index)
        metrics = {**logs.take(), **_numbers(value)}
        means.add({name: as_number(v) for name, v in metrics.items()}, samples)
    hook(model, "on_validation_epoch_end")
    hook(model, "on_validation_end")
    logs.keep()
    found = {**means.result(), **logs.finish()}
    if "loss" not in found and "val_loss" in found:
        found["loss"] = found["val_loss"]
    return found


def _step_arguments(step: Any, batch: Any, index: int) -> tuple[Any, ...]:
    return (batch, index) if len(inspect.signature(step).parameters) > 1 else (batch,)


def _numbers(value: Any) -> dict[str, Any]:
    """Return the loss and the other single numbers of what a step returned; the Trainer only hands on the rest."""
    values = dict(value) if isinstance(value, Mapping) else {"loss": value}
    return {
        name: number
        for name, number in values.items()
        if (name == "loss" and isinstance(value, Mapping)) or _is_number(number)
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, int | float | np.number)
