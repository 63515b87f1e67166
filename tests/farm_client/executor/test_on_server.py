"""What of an optimizer the server can't step is found by its name; nothing is found where it can step all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from farm_client.executor.layout import ModelTensors
from farm_client.executor.on_server import obstacles
from farm_client.executor.optimizer_spec import unknown_to_the_server


class Clipping(torch.optim.SGD):
    """As public programs write it: changes only step()."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Clip, then step."""
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


class FedAdam(torch.optim.SGD):
    """Has the name of one that only servers step."""


def test_what_only_servers_step_is_not_offered_to_the_code() -> None:
    said = unknown_to_the_server(FedAdam([torch.nn.Parameter(torch.ones(1))], lr=0.1)) or ""
    assert "RMSprop and Rprop, not FedAdam: return one of those" in said


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
        (lambda model: FedAdam(model.parameters(), lr=0.1), ["optimizer"]),
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
