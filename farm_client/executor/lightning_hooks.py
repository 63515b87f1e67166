"""Which of a LightningModule's own hooks the farm will not call. By name: Lightning itself is never imported.

Lightning's Trainer calls dozens of methods around a training step. In weights mode ``lightning_loop`` calls those of
the training loop, in gradients mode there are none. Whatever else a class overrides is found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from farm_client.executor.omissions import Omission

LIGHTNING_PACKAGES: Final = frozenset({"lightning", "pytorch_lightning"})
CALLED_IN_BOTH_MODES: Final = frozenset(
    {
        *("training_step", "validation_step", "configure_optimizers", "manual_backward", "lr_scheduler_step"),
        *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
        *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start"),
        *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"),
    }
)
"""What the farm calls, or leaves to the code that calls it."""
CALLED_BY_LOCAL_STEPS: Final = frozenset(
    {
        *("configure_gradient_clipping", "clip_gradients", "backward", "on_before_backward", "on_after_backward"),
        *("optimizer_step", "optimizer_zero_grad", "on_before_optimizer_step", "on_before_zero_grad"),
        *("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end"),
        *("on_train_batch_start", "on_train_batch_end"),
    }
)
"""What is called beside it in weights mode."""
_CHANGE_TRAINING: Final = MappingProxyType(
    {
        **dict.fromkeys(("configure_model", "configure_sharded_model"), "make the layers in __init__"),
        **dict.fromkeys(("training_step_end", "training_epoch_end", "configure_callbacks"), "do it in training_step"),
        **dict.fromkeys(CALLED_BY_LOCAL_STEPS - {"on_train_epoch_end"}, "use --mode weights"),
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


def unused_hooks(model: nn.Module, called: frozenset[str]) -> Iterator[Omission]:
    """Yield what the model's classes override and is not ``called``: each alone if it may change training."""
    cls = type(model)
    own = sorted(_own_names(cls) - called)
    for name in own:
        if name in _CHANGE_TRAINING:
            here = " in gradients mode" if name in CALLED_BY_LOCAL_STEPS else ""
            sentence = f"{cls.__name__}.{name} is never called{here}: {_CHANGE_TRAINING[name]}"
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
    return lightning_base(cls, name) is not None


def lightning_base(cls: type, name: str) -> type | None:
    """Return the class of Lightning's among the bases that defines a name; None if there is none."""
    return next((base for base in cls.__mro__ if _package(base) in LIGHTNING_PACKAGES and name in vars(base)), None)


def _package(thing: Any) -> str:
    return (getattr(thing, "__module__", "") or "").partition(".")[0]
