"""What one step of SGD, Adam or AdamW does to a parameter: torch's own functions, without its optimizer classes.

The classes do the same, to the bit; but the first one to be built imports torch's compiler: that costs a server 75 MB
and the second half of its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

State = dict[str, Tensor]
"""What a rule remembers of one parameter, under torch's names; empty before the first step."""


class UpdateRule(Protocol):
    """An optimizer's options, checked: making one raises ValueError or TypeError for a value that cannot be."""

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Change the parameter and its state in place; ``gradient`` has its shape and dtype, and is left as it is."""


@dataclass(frozen=True, slots=True)
class Sgd:
    """``torch.optim.SGD``."""

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        _check_not_negative(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Take one step, as the protocol defines it."""
        buffers = [state.get("momentum_buffer")]
        sgd(
            [parameter],
            [gradient],
            buffers,
            foreach=False,
            fused=False,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.lr,
            dampening=self.dampening,
            nesterov=self.nesterov,
            maximize=self.maximize,
        )
        if (buffer := buffers[0]) is not None:
            state["momentum_buffer"] = buffer


@dataclass(frozen=True, slots=True)
class Adam:
    """``torch.optim.Adam``."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        _check_not_negative(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        first, second = self.betas
        if not (0 <= first < 1 and 0 <= second < 1):
            raise ValueError(f"betas is {self.betas}, both must be at least 0 and below 1")

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Take one step, as the protocol defines it."""
        self._step(parameter, gradient, state, decoupled_weight_decay=False)

    def _step(self, parameter: Tensor, gradient: Tensor, state: State, *, decoupled_weight_decay: bool) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.amsgrad else [])):
                state[name] = torch.zeros_like(parameter)
        adam(
            [parameter],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [state["max_exp_avg_sq"]] if self.amsgrad else [],
            [state["step"]],
            foreach=False,
            fused=False,
            decoupled_weight_decay=decoupled_weight_decay,
            amsgrad=self.amsgrad,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=self.maximize,
        )


@dataclass(frozen=True, slots=True)
class AdamW(Adam):
    """``torch.optim.AdamW``: the weights decay beside the step."""

    weight_decay: float = 0.01

    def step(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Take one step, as the protocol defines it."""
        self._step(parameter, gradient, state, decoupled_weight_decay=True)


RULES: Final[Mapping[str, type[Sgd | Adam]]] = MappingProxyType({"sgd": Sgd, "adam": Adam, "adamw": AdamW})


def _check_not_negative(**options: float) -> None:
    for name, value in options.items():
        if not value >= 0:  # NaN is neither
            raise ValueError(f"{name} is {value}, it must not be negative")
