"""Handwritten digits: a small convolutional network, trained wherever the farm has room.

Try it alone first (`farm run examples/digits --local 2`), then on a farm (`farm submit examples/digits --watch`).
"""

import torch
from torch import nn
from torch.nn import functional


def build_model(config):
    width = config.get("width", 16)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def loss(model, batch):
    """The batch's mean loss; what stands beside it in the dict is averaged and shown too."""
    images = batch["x"].float().unsqueeze(1) / 16.0  # [batch, 8, 8] uint8 from 0 to 16
    labels = batch["y"].long()
    scores = model(images)
    hits = scores.argmax(dim=1) == labels
    return {"loss": functional.cross_entropy(scores, labels), "accuracy": hits.float().mean()}


def build_optimizer(model, config):
    return torch.optim.SGD(model.parameters(), lr=config.get("lr", 0.1), momentum=config.get("momentum", 0.9))
