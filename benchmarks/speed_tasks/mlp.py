"""An MLP on random pictures: steps so short that whatever is done beside them shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CONFIGS = {
    "cpu": {"width": 512, "batch": 128, "rows": 4096},
    "cuda": {"width": 2048, "batch": 1024, "rows": 65_536},
}
PIXELS = 784
CLASSES = 10


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return an MLP of two hidden layers."""
    width = config["width"]
    return nn.Sequential(
        nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy."""
    return functional.cross_entropy(model(batch["pictures"]), batch["labels"])


def load_shard(shard: Any) -> dict[str, torch.Tensor]:
    """Return random pictures [rows, 784] and labels [rows]."""
    draw = torch.Generator().manual_seed(shard.index)
    pictures = torch.rand(shard.samples, PIXELS, generator=draw)
    return {"pictures": pictures, "labels": torch.randint(CLASSES, (shard.samples,), generator=draw)}
