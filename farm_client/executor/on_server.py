"""Gradients mode: what of a task's optimizer the server can't step, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.optim import optimizer as torch_optimizer

from farm_client.executor.contract import Contract
from farm_client.executor.layout import ModelTensors
from farm_client.executor.omissions import Omission
from farm_client.executor.optimizer_spec import unknown_to_the_server

_BATCH_NORMS: Final = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_CLIP: Final = "clip inside a tensor hook (parameter.register_hook), or use --mode weights"


def obstacles(optimizer: torch.optim.Optimizer, tensors: ModelTensors) -> list[Omission]:
    """Return all that would train another model in gradients mode than a plain loop does; empty if nothing would.

    The optimizer is as ``build_optimizer`` returned it.
    """
    unknown = unknown_to_the_server(optimizer)
    found = [] if unknown is None else [Omission("optimizer", unknown, changes_training=True)]
    found += batch_statistics(tensors.model)
    return [*found, *(one for one in left_with_the_client(optimizer, tensors) if one.changes_training)]


def batch_statistics(model: torch.nn.Module) -> Iterator[Omission]:
    """Yield the layers for which the parts of a batch are not the batch: they normalise by what they see at a time."""
    if names := [name for name, module in model.named_modules() if isinstance(module, _BATCH_NORMS)]:
        yield Omission(
            "batch_statistics",
            f"in gradients mode {names[0]} ({len(names)} such layers) takes its statistics over a client's part of the "
            "batch, not over the whole: let one client do a round, or use --mode weights",
            changes_training=True,
        )


def own_steps(contract: Contract, model: torch.nn.Module) -> Iterator[Omission]:
    """Yield what of the task takes local steps itself, or sees their gradients: gradients mode has none of these."""
    if contract.is_manual(model):
        yield Omission(
            "manual_optimization",
            "in gradients mode the server steps the optimizer, and manual optimization does so itself: use --mode "
            "weights",
            changes_training=True,
        )
    if contract.has("train_step"):
        yield Omission(
            "train_step",
            "in gradients mode the server steps the optimizer, and does not call train_step: use --mode weights",
            changes_training=True,
        )
    if contract.has("on_before_step"):
        yield Omission(
            "on_before_step",
            "in gradients mode the server steps the optimizer, and does not call on_before_step: use --mode weights",
            changes_training=True,
        )


def left_with_the_client(optimizer: torch.optim.Optimizer, tensors: ModelTensors) -> Iterator[Omission]:
    """Yield what gradients mode drops: there the server steps an optimizer of the same class, options and groups."""
    hooks = [*_hooks(optimizer)]
    if hooks:
        yield Omission(
            "optimizer_hooks",
            f"in gradients mode the server steps the optimizer, without its hooks ({', '.join(hooks)}): {_CLIP}",
            changes_training=True,
        )
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        yield Omission(
            "replaced_step",
            f"in gradients mode the server steps the optimizer, and not by the step() that was put into it: {_CLIP}",
            changes_training=True,
        )
    if _has_stepped(optimizer):
        yield Omission(
            "optimizer_state",
            "in gradients mode the server's optimizer begins without the state that build_optimizer gave this one: "
            "begin without it, or use --mode weights",
            changes_training=True,
        )
    if named := [name for name, parameter in tensors.parameters.items() if _has_tensor_hooks(parameter)]:
        yield Omission(
            "tensor_hooks",
            f"in gradients mode the hooks on {named[0]} ({len(named)} parameters have some) see each batch's gradient, "
            "not the mean over the round's samples that the optimizer steps by",
            changes_training=False,
        )


def _has_stepped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether there is a state to lose; Adagrad makes its first one before any step."""
    if type(optimizer) is torch.optim.Adagrad:
        return any(bool(state.get("step", 0)) for state in optimizer.state.values())
    return bool(optimizer.state)


def _hooks(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    for registered in (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ):
        yield from (_name(hook) for hook in registered.values())


def _has_tensor_hooks(parameter: torch.nn.Parameter) -> bool:
    return bool(parameter._backward_hooks) or bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def _name(hook: Any) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))
