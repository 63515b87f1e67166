from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from coordinator.numerics.clipping import Clipping
from coordinator.numerics.outer_optimizer import OuterStep
from protocol.recipe import Mode, OuterOptimizer, Recipe
from protocol.tensors import Layout, TensorSpec

_elements = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6)
_gradients = st.lists(_elements, min_size=1, max_size=4).map(lambda many: [torch.tensor(one) for one in many])
_limits = st.none() | st.floats(1e-3, 1e4)


@given(gradients=_gradients, value=_limits, norm=_limits)
def test_it_is_what_torch_does_to_a_models_gradients(
    gradients: list[torch.Tensor], value: float | None, norm: float | None
) -> None:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    if value is not None:
        clip_grad_value_(parameters, value)
    if norm is not None:
        clip_grad_norm_(parameters, norm)
    Clipping(value, norm).apply(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)


@given(gradients=_gradients, norm=st.floats(1e-2, 1e4))
def test_the_norm_is_that_of_all_gradients_together(gradients: list[torch.Tensor], norm: float) -> None:
    before = np.concatenate([gradient.double().numpy() for gradient in gradients])
    Clipping(norm=norm).apply(gradients)
    after = np.concatenate([gradient.double().numpy() for gradient in gradients])
    share = min(1.0, norm / (float(np.sqrt((before**2).sum())) + 1e-6))
    np.testing.assert_allclose(after, before * share, rtol=2e-6, atol=1e-37)


def test_one_that_is_not_finite_makes_all_nan_and_is_not_hidden() -> None:
    gradients = [torch.tensor([1.0, math.inf]), torch.tensor([math.nan])]
    Clipping(norm=1.0).apply(gradients)
    assert gradients[0].isnan()[1]
    assert gradients[1].isnan().all()


@pytest.mark.parametrize("mode", list(Mode))
def test_the_server_clips_in_gradients_mode_alone(mode: Mode) -> None:
    recipe = Recipe(mode=mode, rounds=1, clip_norm=1.0, clip_value=0.5)
    assert Clipping.of(recipe) == (Clipping() if mode is Mode.WEIGHTS else Clipping(0.5, 1.0))


def test_a_step_clips_parameters_and_neither_buffers_nor_what_has_no_gradient() -> None:
    layout = Layout((TensorSpec("a", "F32", (1,)), TensorSpec("b", "F32", (1,)), TensorSpec("c", "F32", (1,))))
    weights = {name: torch.zeros(1) for name in "abc"}
    mean = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.tensor([100.0])}
    step = OuterStep(OuterOptimizer(options={"lr": 1.0}), weights, layout, clipping=Clipping(norm=1.0))
    step.step(mean, untouched={"c"})
    assert {name: round(value.item(), 5) for name, value in weights.items()} == {"a": -0.6, "b": -0.8, "c": 0.0}
