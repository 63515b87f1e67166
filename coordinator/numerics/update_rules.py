"""What one step of an optimizer does to a parameter: torch's own functions, or a server's, without optimizer classes.

Torch's classes do the same, to the bit; but the first one to be built imports torch's compiler: that costs a server
75 MB and the second half of its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim._adafactor import adafactor
from torch.optim._muon import muon
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.asgd import asgd
from torch.optim.nadam import nadam
from torch.optim.radam import radam
from torch.optim.rmsprop import rmsprop
from torch.optim.rprop import rprop
from torch.optim.sgd import sgd

from coordinator.numerics.delayed_nesterov import delayed_nesterov
from coordinator.numerics.fedopt import fedadagrad, fedadam, fedyogi
from coordinator.numerics.heloco import MOMENTUM, heloco
from protocol.heloco import TURNING
from protocol.optimizers import OPTIMIZERS

State = dict[str, Tensor]
"""What a rule remembers of one parameter, under torch's names; empty before the first step."""
Options = Mapping[str, Any]
"""All options of the optimizer, by torch's names."""
Shape = tuple[int, ...]


def _as_parameter(shape: Shape) -> Shape:
    return shape


def _scalar(_shape: Shape) -> Shape:
    return ()


def _of_rows(shape: Shape) -> Shape:
    return (*shape[:-1], 1)


def _of_columns(shape: Shape) -> Shape:
    return (*shape[:-2], 1, *shape[-1:])


def _zero(_options: Options, _shape: Shape) -> float:
    return 0.0


def _one(_options: Options, _shape: Shape) -> float:
    return 1.0


def _rate(options: Options, _shape: Shape) -> float:
    return float(options["lr"])


def _if(option: str) -> Callable[[Options, Shape], float | None]:
    return lambda options, _shape: 0.0 if options[option] else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """One tensor of a state: its shape, and what it begins with; None where this parameter, or so far, has none."""

    name: str
    first: Callable[[Options, Shape], float | None] = _zero
    shape: Callable[[Shape], Shape] = _as_parameter

    def made(self, parameter: Tensor, options: Options) -> Tensor | None:
        """Return the tensor before the first step; scalars are float32, as torch makes them."""
        shape = tuple(parameter.shape)
        first = self.first(options, shape)
        if first is None:
            return None
        dtype = torch.float32 if self.shape is _scalar else parameter.dtype
        return torch.full(self.shape(shape), first, dtype=dtype)


_STEP: Final = _Kept("step", shape=_scalar)
_MOMENTS: Final = (_Kept("exp_avg"), _Kept("exp_avg_sq"))


_ONE_BY_ONE: Final = MappingProxyType({"foreach": False})
"""What every function of torch is called with: the implementation that equals one process to the bit."""


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """One optimizer. ``kept`` is in the order in which ``function`` takes its lists of state."""

    function: Callable[..., None]
    kept: tuple[_Kept, ...]
    renamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Options that the function takes by other names, a tuple's elements one by one; by none: only ``kept`` use it."""
    always: Mapping[str, Any] = field(default_factory=lambda: dict(_ONE_BY_ONE))
    """What the function is called with besides."""

    def step(self, parameter: Tensor, gradient: Tensor, state: State, options: Options) -> None:
        """Change the parameter and its state in place; ``gradient`` has its shape and dtype, and is left as it is."""
        if not state:
            made = {kept.name: kept.made(parameter, options) for kept in sorted(self.kept, key=_step_first)}
            state |= {name: tensor for name, tensor in made.items() if tensor is not None}
        lists = [[state.get(kept.name)] for kept in self.kept]
        self.function([parameter], [gradient], *lists, **self._arguments(options))
        for kept, (tensor,) in zip(self.kept, lists, strict=True):
            if tensor is not None:
                state[kept.name] = tensor

    def state_shape(self, what: str, parameter: Tensor) -> Shape | None:
        """Return the shape of what is kept of a parameter under a name; None if nothing is."""
        return next((kept.shape(tuple(parameter.shape)) for kept in self.kept if kept.name == what), None)

    def _arguments(self, options: Options) -> dict[str, Any]:
        arguments = dict(self.always)
        for name, value in options.items():
            names = self.renamed.get(name, (name,))
            arguments |= dict(zip(names, value if len(names) > 1 else (value,), strict=False))
        return arguments


def _step_first(kept: _Kept) -> bool:
    return kept is not _STEP


_BETAS: Final = MappingProxyType({"betas": ("beta1", "beta2")})
_ADAM: Final = (*_MOMENTS, _Kept("max_exp_avg_sq", _if("amsgrad")), _STEP)
_SQUARE: Final = _Kept("square_avg")


def _unless_matrix(_options: Options, shape: Shape) -> float | None:
    return None if len(shape) > 1 else 0.0


def _if_matrix(_options: Options, shape: Shape) -> float | None:
    return 0.0 if len(shape) > 1 else None


def _no_buffer_yet(_options: Options, _shape: Shape) -> float | None:
    return None


def _initial_sum(options: Options, _shape: Shape) -> float:
    return float(options["initial_accumulator_value"])


def _tau_squared(options: Options, _shape: Shape) -> float:
    return float(options["tau"]) ** 2


_FED: Final = (_Kept("exp_avg"), _Kept("exp_avg_sq", _tau_squared))
RULES: Final[Mapping[str, UpdateRule]] = MappingProxyType(
    {
        "sgd": UpdateRule(sgd, (_Kept("momentum_buffer", _no_buffer_yet),), always={**_ONE_BY_ONE, "fused": False}),
        "adam": UpdateRule(adam, _ADAM, _BETAS, {**_ONE_BY_ONE, "fused": False}),
        "adamw": UpdateRule(adam, _ADAM, _BETAS, {**_ONE_BY_ONE, "fused": False, "decoupled_weight_decay": True}),
        "adadelta": UpdateRule(adadelta, (_SQUARE, _Kept("acc_delta"), _STEP)),
        "adafactor": UpdateRule(
            adafactor,
            (
                _Kept("row_var", _if_matrix, _of_rows),
                _Kept("col_var", _if_matrix, _of_columns),
                _Kept("variance", _unless_matrix),
                _STEP,
            ),
            {"eps": ("eps1", "eps2")},
        ),
        "adagrad": UpdateRule(adagrad, (_Kept("sum", _initial_sum), _STEP), {"initial_accumulator_value": ()}),
        "adamax": UpdateRule(adamax, (_Kept("exp_avg"), _Kept("exp_inf"), _STEP), _BETAS),
        "asgd": UpdateRule(asgd, (_Kept("ax"), _Kept("mu", _one, _scalar), _Kept("eta", _rate, _scalar), _STEP)),
        "muon": UpdateRule(muon, (_Kept("momentum_buffer"),), always={**_ONE_BY_ONE, "has_complex": False}),
        "nadam": UpdateRule(nadam, (*_MOMENTS, _Kept("mu_product", _one, _scalar), _STEP), _BETAS),
        "radam": UpdateRule(radam, (*_MOMENTS, _STEP), _BETAS),
        "rmsprop": UpdateRule(
            rmsprop,
            (_SQUARE, _Kept("grad_avg", _if("centered")), _Kept("momentum_buffer", _if("momentum")), _STEP),
        ),
        "rprop": UpdateRule(
            rprop,
            (_Kept("prev"), _Kept("step_size", _rate), _STEP),
            {"etas": ("etaminus", "etaplus"), "step_sizes": ("step_size_min", "step_size_max"), "lr": ()},
        ),
        "fedadagrad": UpdateRule(fedadagrad, _FED, always={}),
        "fedadam": UpdateRule(fedadam, _FED, always={}),
        "fedyogi": UpdateRule(fedyogi, _FED, always={}),
        "delayed_nesterov": UpdateRule(
            delayed_nesterov, (_Kept("momentum_buffer"), _Kept("gradient_sum"), _STEP), always={}
        ),
        "heloco": UpdateRule(
            heloco, (_Kept(MOMENTUM), _Kept("ahead", shape=_scalar)), dict.fromkeys(TURNING, ()), always={}
        ),
    }
)
"""What steps each optimizer of ``protocol.optimizers``."""


def options_of(name: str, given: Options) -> dict[str, Any]:
    """Return all options of an optimizer: those given, and its defaults."""
    options = OPTIMIZERS[name].options
    return {key: given.get(key, option.default) for key, option in options.items()}
