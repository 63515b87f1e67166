"""What of an optimizer the server can't step is found by its name; nothing is found where it can step all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from farm_client.executor.layout import ModelTensors
from farm_client.executor.on_server import obstacles


class Clipping(torch.optim.SGD):
    """As public programs write it: changes only step()."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Clip, then step."""
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


def _with_hook(model: nn.Module) -> Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


def _with_state(model: nn.Module) -> Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[next(model.parameters())]["momentum_buffer"] = torch.ones(2, 3)
    return optimizer


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda model: torch.optim.AdamW(model.parameters()), []),
        (lambda model: torch.optim.Adagrad(model.parameters()), []),
        (lambda model: torch.optim.SparseAdam(list(model.parameters())), ["optimizer"]),
        (lambda model: Clipping(model.parameters(), lr=0.1), ["optimizer"]),
        (lambda model: torch.optim.LBFGS(model.parameters()), ["optimizer"]),
        (_with_hook, ["optimizer_hooks"]),
        (_with_state, ["optimizer_state"]),
    ],
)
def test_obstacles_are_named(build: Callable[[nn.Module], Optimizer], names: list[str]) -> None:
    model = nn.Linear(3, 2)
    assert [one.name for one in obstacles(build(model), ModelTensors.of(model))] == names


def test_layers_that_normalise_by_the_batch_are_an_obstacle() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    (found,) = obstacles(torch.optim.SGD(model.parameters(), lr=0.1), ModelTensors.of(model))
    assert found.name == "batch_statistics"
    assert "in gradients mode 1 (1 such layers)" in found.sentence
