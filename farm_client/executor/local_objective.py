"""What local steps minimize beside the loss: a term whose gradient each batch's gets, before all that looks at it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from farm_client.executor.inner_state import Stateful
from farm_client.executor.layout import TensorMap
from farm_client.executor.optimizers import Optimizers


class LocalTerm(Protocol):
    """A term of the local objective."""

    field: ClassVar[str]
    """The recipe's field that asks for it."""

    def refused(self, optimizers: Optimizers) -> str | None:
        """Return why it can't be had with these optimizers, in a clause; None if it can."""

    def stateful(self) -> Mapping[str, Stateful]:
        """Return what of it belongs to the inner loop's state."""

    def add_gradient(self, parameters: Mapping[str, nn.Parameter], without: Collection[str]) -> None:
        """Add its gradient to that of each parameter but ``without``: those that the loss never depended on."""

    def end(self) -> TensorMap | None:
        """End the round, before its state is saved; return what the client keeps for its next one, if anything."""


@dataclass(frozen=True, slots=True)
class ProximalTerm:
    """FedProx's: mu / 2 times the squared distance from the round's weights, which pulls local steps back there.

    The local objective is F(w) + mu / 2 * ||w - w_t||^2, so that each gradient gets mu * (w - w_t). Buffers and frozen
    tensors have no part in it. Source: Li et al., arXiv:1812.06127, equation 2 and algorithm 2.
    """

    field: ClassVar[str] = "proximal_mu"

    mu: float
    anchor: Mapping[str, torch.Tensor]
    """w_t by name, on the model's device."""

    def refused(self, optimizers: Optimizers) -> str | None:
        """Return why it can't be had with these optimizers; None: it is a part of the loss."""

    def stateful(self) -> Mapping[str, Stateful]:
        """Return nothing: it is of the version alone."""
        return {}

    def end(self) -> None:
        """Keep nothing."""

    def add_gradient(self, parameters: Mapping[str, nn.Parameter], without: Collection[str]) -> None:
        """Add mu * (w - w_t). A parameter without a gradient in this batch is pulled too, if it had one before."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in without:
                    continue
                pull = (parameter - self.anchor[name]).mul_(self.mu)
                parameter.grad = pull if parameter.grad is None else pull.add_(parameter.grad)
