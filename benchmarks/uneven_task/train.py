"""Digits, on a machine whose speed is set: each batch rests until as long has passed as that speed needs for it.

``digits.npz`` lies beside this file. ``config``: ``samples`` (rows of an epoch, the digits with a little noise) and
``unit_samples_per_s``, the speed of a machine of speed 1. The machine's own is in ``SPEED_VARIABLE``.
"""

import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

SPEED_VARIABLE = "LC_PLANTED_SPEED"
"""An executor inherits no variables but a few, those of the language among them."""
HELD_OUT = 360
"""The last digits are trained by nobody."""
STEP_SECONDS = 0.02
"""The most that a step of the optimizer counts as work: after a longer while the machine was idle."""
_NOISE = 0.05


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels from 0 to 1, of shape [rows, 64], and labels."""
    with np.load(Path(__file__).parent / "digits.npz") as found:
        pixels = torch.from_numpy(found["x"]).float().flatten(1)
        return pixels / pixels.max(), torch.from_numpy(found["y"]).long()


class NoisyDigits:
    """``samples`` digits, again and again with other noise."""

    def __init__(self, samples: int) -> None:
        pixels, labels = digits()
        self.pixels, self.labels, self.samples = pixels[:-HELD_OUT], labels[:-HELD_OUT], samples

    def __len__(self) -> int:
        """Count the rows of an epoch."""
        return self.samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one row."""
        noise = torch.randn(64, generator=torch.Generator().manual_seed(index))
        row = index % len(self.labels)
        return self.pixels[row] + _NOISE * noise, self.labels[row]


class SlowNetwork(nn.Module):
    """A small network that takes as long for a batch as the machine's planted speed says."""

    def __init__(self, samples_per_s: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.samples_per_s = samples_per_s
        self.done_at = 0.0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape [batch, 10], no sooner than this machine can; a step in between counts."""
        took = len(rows) / self.samples_per_s
        began = max(self.done_at, time.monotonic() - STEP_SECONDS)
        found: torch.Tensor = self.layers(rows)
        self.done_at = began + took
        time.sleep(max(self.done_at - time.monotonic(), 0.0))
        return found


def build_model(config: dict[str, float]) -> SlowNetwork:
    """Return a network that is as fast as this machine."""
    return SlowNetwork(float(os.environ.get(SPEED_VARIABLE, "1")) * config["unit_samples_per_s"])


def build_optimizer(model: nn.Module, config: dict[str, float]) -> torch.optim.Optimizer:
    """Return plain SGD, with a rate at which a minute of this does not yet learn all there is."""
    return torch.optim.SGD(model.parameters(), lr=0.02)


def make_dataset(config: dict[str, float]) -> NoisyDigits:
    """Return the training rows."""
    return NoisyDigits(int(config["samples"]))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean cross-entropy of a batch."""
    rows, labels = batch
    return nn.functional.cross_entropy(model(rows), labels)
