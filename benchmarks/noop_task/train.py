"""A task that trains nothing: what a round of it costs is what the farm adds to every round."""

import torch
from torch import nn


class Flat(nn.Module):
    """One vector of ``params`` float32 numbers."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.zeros(params))


class Numbers:
    """The numbers from 0 to 1 in as many steps as asked for: no two clients' parts, and so no two updates, are alike.

    Equal updates would have one digest, and the farm would store and move them once.
    """

    def __init__(self, samples: int) -> None:
        self.numbers = torch.linspace(0, 1, samples).unsqueeze(1)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one sample, of shape [1]."""
        return self.numbers[index]


def build_model(config: dict[str, float]) -> Flat:
    """Return a model of ``config["params"]`` parameters."""
    return Flat(int(config["params"]))


def build_optimizer(model: Flat, config: dict[str, float]) -> torch.optim.Optimizer:
    """Return the optimizer with the least work and no state."""
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def loss(model: Flat, batch: torch.Tensor) -> torch.Tensor:
    """Touch one parameter; the gradient still has the size of the model."""
    return model.flat[0] * batch.mean()


def make_dataset(config: dict[str, float]) -> Numbers:
    """Return ``config["samples"]`` samples."""
    return Numbers(int(config["samples"]))
