"""A batch's gradient: the loss, its checks, and the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch

from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError, LossNotFinite, calling


class BatchGradient:
    """Adds the gradients of batches' mean losses to a model's parameters."""

    def __init__(self, contract: Contract, model: torch.nn.Module) -> None:
        self._contract = contract
        self._model = model

    def add(self, batch: Any, step: int) -> dict[str, float]:
        """Add the gradient of the batch's mean loss to the parameters, and return the loss and its metrics.

        Raises: CodeError, LossNotFinite.
        """
        value = self._contract.loss(self._model, batch)
        number = value.loss.detach().item()
        check_loss(number, step)
        if not value.loss.requires_grad:
            raise CodeError(
                "the loss does not depend on the model's parameters: compute it from model(...) with gradients"
            )
        with calling("the loss's backward pass", self._contract.code_dir):
            torch.autograd.backward(value.loss)
        return {"loss": number, **value.metrics}


def check_loss(loss: float, step: int) -> None:
    """Raises: LossNotFinite."""
    if not math.isfinite(loss):
        raise LossNotFinite(
            f"the loss is {loss} at step {step} of the round: lower the learning rate, clip gradients in loss, "
            "and look for NaN or zero divisors in the data"
        )
