"""ResNet-18 (He et al., arXiv:1512.03385) in the form that is usual for pictures of 32 x 32, on random ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CONFIGS = {
    "cpu": {"width": 16, "batch": 16, "rows": 256},
    "cuda": {"width": 64, "batch": 512, "rows": 16_384},
}
CLASSES = 10
SIDE = 32


def _normed(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _normed(inputs, outputs, 3, stride)
        self.second = _normed(outputs, outputs, 3, 1)
        self.shortcut = nn.Identity() if inputs == outputs else _normed(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.shortcut(x))


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return the network: four stages of two blocks."""
    width = config["width"]
    layers: list[nn.Module] = [_normed(3, width, 3, 1), nn.ReLU()]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        layers += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy; on a card in bfloat16."""
    pictures = batch["pictures"]
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        return functional.cross_entropy(model(pictures), batch["labels"])


def load_shard(shard: Any) -> dict[str, torch.Tensor]:
    """Return random pictures [rows, 3, 32, 32] and labels [rows]."""
    draw = torch.Generator().manual_seed(shard.index)
    pictures = torch.rand(shard.samples, 3, SIDE, SIDE, generator=draw)
    return {"pictures": pictures, "labels": torch.randint(CLASSES, (shard.samples,), generator=draw)}
