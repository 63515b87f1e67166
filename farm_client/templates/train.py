"""Two spirals: classify a point by the spiral that it lies on.

The farm calls these functions on its volunteers' machines. `config` is the [config] table of task.toml; a batch is a
dict of tensors, keyed by the names of the arrays in data.npz. What you print comes back with `farm logs`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return a new model; the farm owns its weights."""
    width = config["width"]
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch's mean loss; other values in the dict are averaged and shown beside it."""
    scores = model(batch["point"])
    hits = scores.argmax(dim=1) == batch["spiral"]
    return {"loss": functional.cross_entropy(scores, batch["spiral"]), "accuracy": hits.float().mean()}


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of the local steps. Leave the function out for AdamW with its defaults."""
    return torch.optim.AdamW(model.parameters(), lr=config["lr"])
