"""What an optimizer was given that its class and its parameter groups do not say, and that the farm would drop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

from farm_client.executor.layout import ModelTensors
from farm_client.executor.omissions import Omission

_CLIP = "clip inside a tensor hook (parameter.register_hook), or use --mode weights"


def foreign_parameters(optimizer: torch.optim.Optimizer, tensors: ModelTensors) -> Iterator[Omission]:
    """Yield the parameters that it would train and that are not the model's: they are never sent back."""
    own = {id(parameter) for parameter in tensors.model.parameters()}
    foreign = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own and p.requires_grad]
    if foreign:
        shapes = ", ".join(str(list(p.shape)) for p in foreign[:3])
        yield Omission(
            "foreign_parameters",
            f"the optimizer trains {len(foreign)} parameters (of shapes {shapes}) that are not in the model, and what "
            "they learn would be lost: make them parameters of the model that build_model returns",
            changes_training=True,
        )


def resting_rate(optimizer: torch.optim.Optimizer) -> Iterator[Omission]:
    """Yield a note if no parameter will move: every group's learning rate is 0, by no schedule."""
    if all(float(group.get("lr", 1.0)) == 0 and "initial_lr" not in group for group in optimizer.param_groups):
        yield Omission("lr", "the learning rate is 0: training will change nothing", changes_training=False)


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
    if optimizer.state:
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
