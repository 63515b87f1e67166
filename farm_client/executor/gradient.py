"""A batch's gradient: the loss, its checks, and the backward pass."""

from __future__ import annotations

from typing import Any

import torch

from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError, calling
from farm_client.executor.step_metrics import Number, check_loss, left_there


class BatchGradient:
    """Adds the gradients of batches' mean losses to a model's parameters."""

    def __init__(self, contract: Contract, model: torch.nn.Module) -> None:
        self._contract = contract
        self._model = model

    def add(self, batch: Any, step: int) -> dict[str, Number]:
        """Add the gradient of the batch's mean loss to the parameters, and return the loss and its metrics.

        A loss on an accelerator stays there, unchecked: reading it would wait for all that the accelerator has to do.
        Raises: CodeError, LossNotFinite.
        """
        value = self._contract.loss(self._model, batch)
        number = left_there(value.loss)
        if not isinstance(number, torch.Tensor):
            check_loss(number, step)
        if not value.loss.requires_grad:
            raise CodeError(
                "the loss does not depend on the model's parameters: compute it from model(...) with gradients"
            )
        with calling("the loss's backward pass", self._contract.code_dir):
            torch.autograd.backward(value.loss)
        return {"loss": number, **value.metrics}
