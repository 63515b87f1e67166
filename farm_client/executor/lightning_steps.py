"""A LightningModule through the researcher's contract, by its methods' names: Lightning itself is never imported.

Used: ``training_step``, ``validation_step``, ``configure_optimizers``, and what they ``log``. Not used: the Trainer,
its callbacks and hooks, and manual optimization: ``survey`` finds them at the submission.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from farm_client.executor.failures import CodeError
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
        self.batch_index = -1
        # Set on the instance, past nn.Module's own attribute handling: the class keeps its methods.
        object.__setattr__(model, "log", self._log)
        object.__setattr__(model, "log_dict", self._log_dict)

    def take(self) -> dict[str, float]:
        """Return what was logged since the last call."""
        values, self._values = self._values, {}
        return values

    def begin(self, model: nn.Module) -> None:
        """Begin an assignment: what metric objects saw in former ones is over."""
        self._values, self.batch_index = {}, -1
        for metric in (*model.modules(), *self._objects.values()):
            if _is_metric(metric):
                metric.reset()
        self._objects = {}

    def finish(self) -> dict[str, float]:
        """Return the values of the metric objects that were logged."""
        return {name: as_number(metric.compute()) for name, metric in self._objects.items()}

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
    _logs(model).begin(model)


def finish(model: nn.Module) -> dict[str, float]:
    """Return the values of the metric objects that the assignment logged."""
    return _logs(model).finish()


def _logs(model: nn.Module) -> CapturedLogs:
    log = model.__dict__.get("log")
    captured = getattr(log, "__self__", None)
    return captured if isinstance(captured, CapturedLogs) else CapturedLogs(model)


def loss(model: Any, batch: Any) -> dict[str, Any]:
    """Run ``training_step``; the loss and what it logged, by name.

    Raises: CodeError if it returns none.
    """
    logs = _logs(model)
    logs.batch_index += 1
    value = model.training_step(*_step_arguments(model.training_step, batch, logs.batch_index))
    if value is None:
        raise CodeError("training_step returned None: return the loss")
    return {**logs.take(), **_numbers(value)}


def build_optimizer(model: Any, _config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the one optimizer of ``configure_optimizers``; its schedulers live as long, so that they can be found.

    Raises: CodeError if there is none, or more than one, or the model optimizes by hand.
    """
    if getattr(model, "automatic_optimization", True) is False:
        raise CodeError("manual optimization is not supported: leave automatic_optimization on and return the loss")
    answer = whole = model.configure_optimizers()
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], list | tuple):
        answer = answer[0]
    found = list(answer) if isinstance(answer, list | tuple) else [answer]
    if len(found) != 1:
        raise CodeError(f"configure_optimizers returned {len(found)} optimizers; the farm trains with exactly one")
    optimizer = found[0]["optimizer"] if isinstance(found[0], Mapping) else found[0]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise CodeError(f"configure_optimizers must return an optimizer, it returned {type(optimizer).__name__}")
    optimizer.came_with = whole  # type: ignore[attr-defined]  # see schedules.schedulers_of
    return optimizer


def schedulers(optimizer: torch.optim.Optimizer) -> tuple[Scheduled, ...]:
    """Return the schedulers that ``configure_optimizers`` returned with this optimizer; by the epoch, as Lightning's.

    Raises: CodeError.
    """
    whole = getattr(optimizer, "came_with", None)
    if isinstance(whole, Mapping):
        given = whole.get("lr_scheduler") or ()
    elif isinstance(whole, tuple | list) and len(whole) == 2 and isinstance(whole[1], tuple | list):
        given = whole[1]
    else:
        given = [one["lr_scheduler"] for one in _mappings(whole) if one.get("lr_scheduler")]
    all_given = given if isinstance(given, tuple | list) else (given,)
    return as_scheduled([_by_epoch(one) for one in all_given])


def _by_epoch(given: Any) -> Mapping[str, Any]:
    settings = given if isinstance(given, Mapping) else {"scheduler": given}
    return {"interval": "epoch", **settings}


def _mappings(whole: Any) -> list[Mapping[str, Any]]:
    return [one for one in whole if isinstance(one, Mapping)] if isinstance(whole, tuple | list) else []


def evaluate(model: Any, data: Iterable[Any]) -> dict[str, float]:
    """Average what ``validation_step`` returns and logs (``training_step`` where the class has none) over samples."""
    logs, means = _logs(model), WeightedMeans()
    logs.begin(model)
    step = model.validation_step if _has_own(model, "validation_step") else model.training_step
    for index, batch in enumerate(data):
        value = step(*_step_arguments(step, batch, index))
        metrics = {**logs.take(), **_numbers(value)}
        means.add({name: as_number(v) for name, v in metrics.items()}, count_samples(batch))
    found = {**means.result(), **logs.finish()}
    if "loss" not in found and "val_loss" in found:
        found["loss"] = found["val_loss"]
    return found


def _has_own(model: Any, method: str) -> bool:
    function = getattr(type(model), method, None)
    package = (getattr(function, "__module__", "") or "").partition(".")[0]
    return function is not None and package not in ("lightning", "pytorch_lightning")


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
