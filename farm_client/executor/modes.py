"""A model's training and evaluation mode, where the model's own code gives ``train`` and ``eval`` other meanings.

``train(mode)`` of ``nn.Module`` is overridden for good reasons (a BatchNorm that is to stay in evaluation), which
count, and for others: a method of that name that does the training itself, which the farm must not call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn

from farm_client.executor.failures import calling


def set_mode(model: nn.Module, code_dir: Path, *, training: bool) -> None:
    """Switch a model and what is in it to training or evaluation. Raises: CodeError if its own code for that does."""
    if not _is_plain(model):
        own = _own_switch(model, training)
        if own is not None:
            with calling("model.train()" if training else "model.eval()", code_dir):
                own()
            return
    model.training = training
    for child in model.children():
        set_mode(child, code_dir, training=training)


def _is_plain(module: nn.Module) -> bool:
    methods = vars(module)
    cls = type(module)
    return (
        cls.train is nn.Module.train and cls.eval is nn.Module.eval and "train" not in methods and "eval" not in methods
    )


def _own_switch(module: nn.Module, training: bool) -> Callable[[], Any] | None:
    """Return how to ask the module's own methods; None if they are not about modes."""
    train, evaluate = getattr(module, "train", None), getattr(module, "eval", None)
    if not training and _is_overridden(module, "eval") and _takes(evaluate, 0):
        return cast("Callable[[], Any]", evaluate)
    if train is None or not _is_overridden(module, "train"):
        return None
    if _is_mode_switch(train):
        return lambda: train(training)
    return train if training and _takes(train, 0) else None


def _is_overridden(module: nn.Module, name: str) -> bool:
    return name in vars(module) or getattr(type(module), name) is not getattr(nn.Module, name)


def _is_mode_switch(method: Any) -> bool:
    """Return whether a method takes a mode as torch's does: by that name, as a boolean, or among ``*args``."""
    if not _takes(method, 1):
        return False
    first = next(iter(inspect.signature(method).parameters.values()))
    is_boolean = first.name == "mode" or isinstance(first.default, bool) or first.annotation in (bool, "bool")
    return is_boolean or first.kind is first.VAR_POSITIONAL


def _takes(method: Any, count: int) -> bool:
    """Return whether a method can be called with so many arguments."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*(True,) * count)
    except (TypeError, ValueError):
        return False
    return True
