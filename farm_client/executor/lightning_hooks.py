"""Which of a LightningModule's own hooks the farm will not call. By name: Lightning itself is never imported.

Lightning's Trainer calls dozens of methods around a training step; the farm calls ``training_step``,
``validation_step`` and ``configure_optimizers``. Whatever else a class overrides is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from farm_client.executor.omissions import Omission

LIGHTNING_PACKAGES: Final = frozenset({"lightning", "pytorch_lightning"})
_CALLED: Final = frozenset({"training_step", "validation_step", "configure_optimizers"})
_CHANGE_TRAINING: Final = MappingProxyType(
    {
        **dict.fromkeys(
            ("configure_gradient_clipping", "clip_gradients"),
            "clip inside a tensor hook (parameter.register_hook) or an optimizer subclass (weights mode)",
        ),
        **dict.fromkeys(
            ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
            "call it at the start of training_step and validation_step",
        ),
        **dict.fromkeys(("configure_model", "configure_sharded_model"), "make the layers in __init__"),
        **dict.fromkeys(
            (
                *("backward", "on_before_backward", "on_after_backward", "manual_backward"),
                *("optimizer_step", "optimizer_zero_grad", "on_before_optimizer_step", "on_before_zero_grad"),
                *("lr_scheduler_step", "configure_callbacks", "on_fit_start", "on_train_start"),
                *("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end"),
                *("training_step_end", "training_epoch_end"),
            ),
            "do it in training_step",
        ),
    }
)
"""Hooks between which and the weights there is nothing: what to do instead, by name."""
_NOTED: Final = frozenset(
    {
        *("prepare_data", "setup", "teardown", "test_step", "predict_step", "validation_step_end"),
        *("validation_epoch_end", "test_epoch_end", "train_dataloader", "val_dataloader", "test_dataloader"),
        *("predict_dataloader", "on_save_checkpoint", "on_load_checkpoint"),
    }
)
_BEGINNINGS: Final = ("on_", "configure_")


def unused_hooks(model: nn.Module) -> Iterator[Omission]:
    """Yield what the model's classes override and the farm does not call: each alone if it may change training."""
    cls = type(model)
    own = sorted(_own_names(cls) - _CALLED)
    for name in own:
        if name in _CHANGE_TRAINING:
            sentence = f"{cls.__name__}.{name} is never called: {_CHANGE_TRAINING[name]}"
            yield Omission(name, sentence, changes_training=True)
    rest = [name for name in own if name not in _CHANGE_TRAINING and _is_hook(cls, name)]
    if rest:
        yield Omission("hooks", f"never called on the farm: {cls.__name__}'s {', '.join(rest)}", changes_training=False)


def is_own(cls: type, method: str) -> bool:
    """Return whether the class has this method from other hands than Lightning's."""
    function = getattr(cls, method, None)
    return function is not None and _package(function) not in LIGHTNING_PACKAGES


def _own_names(cls: type) -> set[str]:
    """Return the names of methods that classes outside of torch and Lightning define, and that are in force."""
    theirs = {*LIGHTNING_PACKAGES, "torch", "builtins"}
    names = {name for base in cls.__mro__ if _package(base) not in theirs for name in vars(base)}
    return {name for name in names if callable(getattr(cls, name, None)) and is_own(cls, name)}


def _is_hook(cls: type, name: str) -> bool:
    return name in _NOTED or (name.startswith(_BEGINNINGS) and _is_lightnings(cls, name))


def _is_lightnings(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__ if _package(base) in LIGHTNING_PACKAGES)


def _package(thing: Any) -> str:
    return (getattr(thing, "__module__", "") or "").partition(".")[0]


@contextmanager
def reads_of_counters(model: nn.Module) -> Iterator[set[str]]:
    """Note which of Lightning's counters the task reads meanwhile: without a Trainer they are 0 for ever."""
    read: set[str] = set()
    owners = {
        name: next((b for b in type(model).__mro__ if name in vars(b) and _package(b) in LIGHTNING_PACKAGES), None)
        for name in ("current_epoch", "global_step")
    }
    replaced = [(owner, name, vars(owner)[name]) for name, owner in owners.items() if owner is not None]
    for owner, name, original in replaced:
        setattr(owner, name, property(_noting(name, original, read)))
    try:
        yield read
    finally:
        for owner, name, original in replaced:
            setattr(owner, name, original)


def _noting(name: str, original: property, read: set[str]) -> Callable[[Any], Any]:
    def value(model: Any) -> Any:
        read.add(name)
        return original.__get__(model, type(model))

    return value
