"""A task that trains nothing: what a round of it costs is what the farm adds to every round."""

import torch
from torch import nn

TENSOR_PARAMS = 10_000_000
"""The largest tensor: a model of billions is no single one."""


def tensor_sizes(params: int) -> list[int]:
    """Part a number of parameters into tensors of at most ``TENSOR_PARAMS``."""
    return [min(TENSOR_PARAMS, params - start) for start in range(0, params, TENSOR_PARAMS)]


class Flat(nn.Module):
    """Vectors of ``params`` float32 numbers in all."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.zeros(size) for size in tensor_sizes(params))


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
    """Touch one parameter; the update still has the size of the model."""
    first: torch.Tensor = model.parts[0][0]
    return first * batch.mean()


def make_dataset(config: dict[str, float]) -> Numbers:
    """Return ``config["samples"]`` samples."""
    return Numbers(int(config["samples"]))
