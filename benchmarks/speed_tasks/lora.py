"""A frozen GPT with low-rank adapters (LoRA; Hu et al., arXiv:2106.09685) beside each block's linear layers."""

from __future__ import annotations

from typing import Any

import nanogpt  # type: ignore[import-not-found]  # beside this file in the bundle
import torch
from torch import nn

RANK = 8
CONFIGS = nanogpt.CONFIGS
loss = nanogpt.loss
load_shard = nanogpt.load_shard


class Adapted(nn.Module):
    """A frozen linear layer plus ``up(down(x))``, which is zero at the start."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the adapter's."""
        adapted: torch.Tensor = self.base(x) + self.up(self.down(x))
        return adapted


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return a GPT of which the adapters alone are trained."""
    model: Any = nanogpt.build_model(config)
    model.requires_grad_(False)
    for block in model.blocks:
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(block, name, Adapted(layer))
    return model  # type: ignore[no-any-return]  # which is the GPT


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return AdamW over the adapters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-3, fused=True if trained[0].is_cuda else None)
