"""Which term a task's local objective has, by its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from farm_client.executor.control_variates import ControlVariates
from farm_client.executor.layout import ModelTensors
from farm_client.executor.local_objective import LocalTerm, ProximalTerm
from farm_client.executor.messages import LoadTask, Run


def asked_for(order: LoadTask) -> str | None:
    """Return the recipe's field that asks for a term of the local objective; None if none does."""
    if order.proximal_mu:
        return ProximalTerm.field
    return ControlVariates.field if order.scaffold_clients else None


def term_of(task: LoadTask, order: Run, tensors: ModelTensors, base: Mapping[str, torch.Tensor]) -> LocalTerm | None:
    """Return the term of an assignment's local steps, which begin at ``base``; None without any."""
    if task.proximal_mu:
        return ProximalTerm(task.proximal_mu, base)
    if not task.scaffold_clients:
        return None
    samples = sum(piece.stop - piece.start for piece in order.pieces) or 1
    own = None if order.control_path is None or order.data_part is not None else Path(order.control_path)
    share = (order.round_samples or samples) / samples
    return ControlVariates(tensors, own, share=share, clients=task.scaffold_clients, part=order.data_part)
