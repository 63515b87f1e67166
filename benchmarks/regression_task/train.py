"""A float64 regression whose steps take a set time: what faults may cost is time, never a digit of its weights.

``config``: ``samples``, ``features``, ``batch_seconds`` (each forward pass rests so long, so that a loaded machine
measures the farm and not the arithmetic), ``lr``.
"""

import time

import torch
from torch import nn


class Regression(nn.Module):
    """A small tanh network in float64; ``batch_seconds`` is how long a batch takes at least."""

    def __init__(self, features: int, batch_seconds: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, 1))
        self.batch_seconds = batch_seconds
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the prediction, of shape [batch]."""
        time.sleep(self.batch_seconds)
        prediction: torch.Tensor = self.layers(x)
        return prediction.squeeze(1)


class Rows:
    """Deterministic float64 rows and a target that is no linear function of them."""

    def __init__(self, samples: int, features: int) -> None:
        generator = torch.Generator().manual_seed(7)
        rows = torch.randn(samples, features, dtype=torch.float64, generator=generator)
        # Rows of length one or so, however many features: a network that saturates would magnify the last digit.
        self.x = rows / features**0.5
        self.y = rows.sin().sum(dim=1) / features**0.5

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row."""
        return {"x": self.x[index], "y": self.y[index]}


def build_model(config: dict[str, float]) -> Regression:
    """Return the same initial weights each time."""
    torch.manual_seed(11)
    return Regression(int(config["features"]), config["batch_seconds"])


def build_optimizer(model: Regression, config: dict[str, float]) -> torch.optim.Optimizer:
    """Return SGD with momentum: a lost or repeated round would show in all that follow."""
    return torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)


def loss(model: Regression, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared error."""
    return nn.functional.mse_loss(model(batch["x"]), batch["y"])


def make_dataset(config: dict[str, float]) -> Rows:
    """Return ``config["samples"]`` rows."""
    return Rows(int(config["samples"]), int(config["features"]))
