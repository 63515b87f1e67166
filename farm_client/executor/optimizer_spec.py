"""From the researcher's torch optimizer to the one that the server applies to mean gradients (gradients mode)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.layout import ModelTensors
from protocol.optimizers import OPTIMIZERS, OptimizerName, OptionValue
from protocol.recipe import OuterOptimizer, ParameterGroup
from protocol.schedule import Schedule

_NAMES: Final[Mapping[type[torch.optim.Optimizer], OptimizerName]] = {
    getattr(torch.optim, optimizer.torch_name): cast("OptimizerName", name)
    for name, optimizer in OPTIMIZERS.items()
    if optimizer.torch_name is not None and hasattr(torch.optim, optimizer.torch_name)  # Muon came with torch 2.9
}


def outer_optimizer_of(
    optimizer: torch.optim.Optimizer, tensors: ModelTensors, schedules: Sequence[Mapping[str, Schedule]] = ()
) -> OuterOptimizer:
    """Return the same optimizer as a record: its kind, options and parameter groups by name.

    ``schedules`` are of each group's options that change with the step.
    Raises: CodeError if the server has no such optimizer, or an option of it is no number.
    """
    if (unknown := unknown_to_the_server(optimizer)) is not None:
        raise CodeError(unknown)
    name = _NAMES[type(optimizer)]
    if name == "adam" and optimizer.param_groups[0].get("decoupled_weight_decay"):
        name = "adamw"
    options = _options(name, optimizer.defaults)
    named = {id(parameter): key for key, parameter in tensors.parameters.items()}
    groups = [
        _group(name, group, named, options, {} if not schedules else schedules[number])
        for number, group in enumerate(optimizer.param_groups)
    ]
    covered = sum(len(group.names) for group in groups)
    if len(groups) == 1 and covered == len(tensors.parameters):
        return OuterOptimizer(name=name, options=options | groups[0].options, schedules=groups[0].schedules)
    return OuterOptimizer(name=name, options=options, groups=tuple(group for group in groups if group.names))


def unknown_to_the_server(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why the server has no such optimizer, in a sentence; None if it has."""
    if type(optimizer) not in _NAMES:
        return (
            f"in gradients mode the server applies the optimizer, and it has {_known()}, not "
            f"{type(optimizer).__name__}: return one of those from build_optimizer, or use --mode weights"
        )
    first = optimizer.param_groups[0].get("decoupled_weight_decay")
    if any(group.get("decoupled_weight_decay") != first for group in optimizer.param_groups):
        return "in gradients mode all parameter groups decay alike: decoupled_weight_decay differs between them"
    return None


def _known() -> str:
    *others, last = (optimizer.torch_name for optimizer in OPTIMIZERS.values() if optimizer.torch_name is not None)
    return f"{', '.join(others)} and {last}"


def _group(
    name: str,
    group: Mapping[str, Any],
    named: Mapping[int, str],
    defaults: Mapping[str, OptionValue],
    schedules: Mapping[str, Schedule],
) -> ParameterGroup:
    """Return one group; frozen parameters, which a step would leave alone, are left out."""
    names = tuple(named[id(parameter)] for parameter in group["params"] if id(parameter) in named)
    options = {key: value for key, value in _options(name, group).items() if value != defaults[key]}
    options.pop("initial_accumulator_value", None)  # Adagrad fills all sums by its default, whatever a group has
    return ParameterGroup(names=names, options=options, schedules=dict(schedules))


def _options(name: str, values: Mapping[str, Any]) -> dict[str, OptionValue]:
    options = {key: _plain(values[key]) for key in OPTIMIZERS[name].options}
    for key, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise CodeError(f"the optimizer's {key} is {value}: give it a number")
    return options


def _plain(value: Any) -> OptionValue:
    """Return an option without tensors: torch allows a learning rate to be one."""
    if isinstance(value, tuple | list):
        return tuple(None if number is None else float(number) for number in value)  # type: ignore[return-value]  # of two or three
    return value.item() if isinstance(value, torch.Tensor) else value
