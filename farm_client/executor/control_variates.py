"""SCAFFOLD: control variates that take the drift out of a client's local steps.

With c the server's control variate, c_i the client's, N clients in all and S those of a round, each of K steps is
y <- y - lr * (g_i(y) - c_i + c), and then

    c_i+ = c_i - c + (x - y) / (K * lr)        c <- c + sum over S of (c_i+ - c_i) / N

Source: Karimireddy et al., arXiv:1910.06378, algorithm 1 with option II. For plain SGD with one rate the former is the
mean of the gradients g_i that the steps computed, and that is what is kept here: it needs no division by a small rate,
and holds where a schedule changes the rate. c travels with the version, as the state of an inner optimizer does
(``inner_state = "carried"``); c_i stays with the client, in a file that its agent keeps.

Where rows are dealt to virtual clients, the clients are those, whichever machine computes a part: all c_i travel with
the version, beside c.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from farm_client.executor.failures import LossNotFinite
from farm_client.executor.inner_state import Stateful
from farm_client.executor.layout import ModelTensors, TensorMap, as_stored, is_finite
from farm_client.executor.means import remark
from farm_client.executor.optimizers import Optimizers

STATE: Final = "control"
"""The name of c among the parts of an inner state."""
_HALVES: Final = frozenset({torch.float16, torch.bfloat16})


class ControlVariates:
    """One client's in one round. Those of 16-bit parameters are float32; a tensor that is not there is zero."""

    field: ClassVar[str] = "scaffold_clients"

    def __init__(
        self, tensors: ModelTensors, own: Path | None, *, share: float, clients: int, part: int | None = None
    ) -> None:
        """``own`` is the file of c_i, if there is one; ``part`` is the virtual client i, whose c_i then travels.

        The server takes the mean of what the clients of the round say that c became, by samples. So the change of c_i
        goes into c times ``share``, the round's samples over this client's, over N, ``clients``: then the mean is the
        sum over S, divided by N, whatever the parts. Likewise a c_i that travels: all others say that it is as it was.
        """
        self._parameters = tensors.parameters
        self._share = share
        self._scale = share / clients
        self._part = part
        self._of_parts: dict[str, TensorMap] = {} if part is None else {str(number): {} for number in range(clients)}
        self._server: TensorMap = {}
        self._own = {} if own is None or not own.exists() else _read(own, self._parameters)
        self._sums: TensorMap = {}
        self._steps = 0

    def refused(self, optimizers: Optimizers) -> str | None:
        """Return why these optimizers are not the paper's; None for plain SGD, with weight decay or without."""
        for one in optimizers:
            if type(one) is not torch.optim.SGD or any(group["momentum"] for group in one.param_groups):
                return (
                    f"control variates are of plain SGD, without momentum, and build_optimizer has {type(one).__name__}"
                )
        return None

    def stateful(self) -> Mapping[str, Stateful]:
        """Return what goes into the inner state: c, and within a round the gradients so far."""
        return {STATE: self}

    def add_gradient(self, parameters: Mapping[str, nn.Parameter], without: Collection[str]) -> None:
        """Note the step's gradient, and add c - c_i. A parameter without one in this batch has a gradient of zero."""
        self._steps += 1
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in without:
                    continue
                gradient = _dense(parameter)
                total = self._sums.get(name)
                self._sums[name] = gradient.to(_wide(parameter), copy=True) if total is None else total.add_(gradient)
                shift = self._difference(name)
                if shift is not None:
                    parameter.grad = shift.add_(gradient).to(parameter.dtype)

    def _difference(self, name: str) -> torch.Tensor | None:
        """Return c - c_i of a parameter, in memory of its own; None where both are zero."""
        server, own = self._server.get(name), self._own.get(name)
        if server is None:
            return None if own is None else own.neg()
        return server.clone() if own is None else server - own

    def end(self) -> TensorMap | None:
        """Let c become what this client says of it, and return c_i+; None where it travels. Raises: LossNotFinite."""
        zeros = {name: torch.zeros_like(p, dtype=_wide(p), requires_grad=False) for name, p in self._parameters.items()}
        own = {name: total.div_(self._steps) for name, total in self._sums.items()}
        own = zeros | self._own | own
        if bad := next((name for name, tensor in own.items() if not is_finite(tensor)), None):
            raise LossNotFinite(f"the gradients of {bad} hold NaN or infinity: lower the learning rate")
        # In this order c is c_i+ to the bit where there is one client, and c was c_i.
        self._server = {
            name: self._server.get(name, zero) - self._own.get(name, zero) * self._scale + own[name] * self._scale
            for name, zero in zeros.items()
        }
        self._sums, self._steps = {}, 0
        if self._part is None:
            return as_stored(own)
        self._of_parts = {number: zeros | tensors for number, tensors in self._of_parts.items()}
        self._of_parts[str(self._part)] = {
            name: before + (own[name] - before) * self._share
            for name, before in self._of_parts[str(self._part)].items()
        }
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return c, those that travel, and what the steps of the round have computed so far, if any."""
        begun = {"sums": self._sums, "steps": self._steps} if self._steps else {}
        return {"c": self._server, **({"parts": self._of_parts} if self._of_parts else {}), **begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take on what ``state_dict`` returned."""
        self._server = self._placed(state_dict["c"])
        self._of_parts |= {number: self._placed(tensors) for number, tensors in state_dict.get("parts", {}).items()}
        self._own = self._own if self._part is None else self._of_parts[str(self._part)]
        self._sums, self._steps = self._placed(state_dict.get("sums", {})), int(state_dict.get("steps", 0))

    def _placed(self, tensors: Mapping[str, torch.Tensor]) -> TensorMap:
        return {name: tensor.to(self._parameters[name].device) for name, tensor in tensors.items()}


def _read(path: Path, parameters: Mapping[str, nn.Parameter]) -> TensorMap:
    """Return the client's own control variate; one that is damaged, or of another model, is zero."""
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        remark(f"this client's control variate can't be read ({error}): it begins from zero")
        return {}
    fits = all(name in parameters and tensor.shape == parameters[name].shape for name, tensor in found.items())
    if not fits or not all(map(is_finite, found.values())):
        remark("this client's control variate is not of this model: it begins from zero")
        return {}
    return {name: tensor.to(parameters[name].device, _wide(parameters[name])) for name, tensor in found.items()}


def _wide(parameter: nn.Parameter) -> torch.dtype:
    return torch.float32 if parameter.dtype in _HALVES else parameter.dtype


def _dense(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, requires_grad=False)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
