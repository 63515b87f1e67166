"""A task whose steps take a set time and whose update is dense noise: what it waits for is the line, never arithmetic.

``config``: ``params``, ``samples``, ``batch_seconds`` (each batch rests so long) and ``round_steps`` (local steps in
which every parameter has changed once).
"""

import time
from collections.abc import Callable

import torch
from torch import nn

TENSOR_PARAMS = 1_000_000


class Noisy(nn.Module):
    """``params`` numbers that no loss depends on, and one that it does."""

    def __init__(self, params: int, batch_seconds: float) -> None:
        super().__init__()
        sizes = [min(TENSOR_PARAMS, params - start) for start in range(0, params, TENSOR_PARAMS)]
        self.parts = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.weight = nn.Parameter(torch.zeros(1))
        self.batch_seconds = batch_seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rest, and return the squared error of one weight, of shape [batch]."""
        time.sleep(self.batch_seconds)
        return (x - self.weight).square()


class Stirring(torch.optim.SGD):
    """SGD, which also adds noise to the next slice of the other parameters: an update that no compression sees through.

    ``round_steps`` slices make the whole. A step costs little, so that many clients fit onto few cores.
    """

    def __init__(self, model: Noisy, lr: float, round_steps: int) -> None:
        super().__init__([model.weight], lr=lr)
        self._parts = model.parts
        self._round_steps = round_steps
        self._steps = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Take a step, and stir."""
        slot = self._steps % self._round_steps
        self._steps += 1
        with torch.no_grad():
            for part in self._parts:
                size = -(-part.numel() // self._round_steps)
                piece = part[slot * size : (slot + 1) * size]
                piece.add_(torch.randn_like(piece), alpha=1e-3)
        value: float | None = super().step(closure)
        return value


class Numbers:
    """The numbers from 0 to 1 in as many steps as asked for."""

    def __init__(self, samples: int) -> None:
        self.numbers = torch.linspace(0, 1, samples).unsqueeze(1)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one sample, of shape [1]."""
        return self.numbers[index]


def build_model(config: dict[str, float]) -> Noisy:
    """Return a model of ``config["params"]`` parameters and one."""
    return Noisy(int(config["params"]), config["batch_seconds"])


def build_optimizer(model: Noisy, config: dict[str, float]) -> torch.optim.Optimizer:
    """Return SGD that stirs."""
    return Stirring(model, lr=0.01, round_steps=int(config["round_steps"]))


def loss(model: Noisy, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error."""
    error: torch.Tensor = model(batch)
    return error.mean()


def make_dataset(config: dict[str, float]) -> Numbers:
    """Return ``config["samples"]`` samples."""
    return Numbers(int(config["samples"]))
