from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from coordinator.numerics.outer_optimizer import OuterStep, all_finite, check_outer_optimizer
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import TORCH_DTYPES, TensorReader
from protocol.errors import InvalidTask, LayoutMismatch
from protocol.recipe import OuterOptimizer, ParameterGroup
from protocol.tensors import Layout, Role, TensorSpec

RECIPES: dict[str, OuterOptimizer] = {
    "sgd": OuterOptimizer(name="sgd", options={"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}),
    "nesterov": OuterOptimizer(name="sgd", options={"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": OuterOptimizer(name="adam", options={"lr": 1e-2, "amsgrad": True}),
    "adamw": OuterOptimizer(name="adamw", options={"lr": 1e-2, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    "groups": OuterOptimizer(
        name="adamw",
        options={"lr": 1e-2},
        groups=(
            ParameterGroup(names=("0.weight", "2.weight"), options={"weight_decay": 0.3}),
            ParameterGroup(names=("0.bias", "2.bias"), options={"weight_decay": 0.0, "lr": 1e-3}),
        ),
    ),
}
STEPS = 50
ROUND_SAMPLES = 60


def make_model(dtype: torch.dtype) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)).to(dtype)


def local_optimizer(recipe: OuterOptimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return what a researcher would write in one process for the recipe."""
    make: Callable[..., torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[recipe.name]
    named = dict(model.named_parameters())
    groups = [{"params": [named[n] for n in g.names], **g.options} for g in recipe.groups]
    return make(groups or list(named.values()), **recipe.options)


def layout_of(model: torch.nn.Module, dtype: str) -> Layout:
    return Layout(tuple(TensorSpec(n, dtype, tuple(p.shape)) for n, p in sorted(model.named_parameters())))


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def batches(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    for _ in range(STEPS):
        x = torch.randn(ROUND_SAMPLES, 6, generator=generator, dtype=torch.float64)
        yield x.to(dtype), x[:, :2].square().to(dtype)


def gradients(model: torch.nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distributed_step(model: torch.nn.Module, outer: OuterStep, layout: Layout, parts: Iterator[Any]) -> None:
    accumulator = WeightedMean(layout)
    for x, y in parts:
        accumulator.fold(TensorReader(gradients(model, x, y)), len(x))
    outer.step(accumulator.result())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shares", [[60], [30, 30], [12] * 5, [7, 23, 30]], ids=str)
@pytest.mark.parametrize(("name", "dtype", "rtol"), [("F64", torch.float64, 1e-9), ("F32", torch.float32, 1e-5)])
def test_clients_together_equal_one_process(
    recipe: str, shares: list[int], name: str, dtype: torch.dtype, rtol: float
) -> None:
    alone, shared = make_model(dtype), make_model(dtype)
    optimizer = local_optimizer(RECIPES[recipe], alone)
    layout, weights = layout_of(shared, name), dict(shared.named_parameters())
    outer = OuterStep(RECIPES[recipe], {n: w.data for n, w in weights.items()}, layout)
    for x, y in batches(dtype):
        gradients(alone, x, y)
        optimizer.step()
        distributed_step(shared, outer, layout, zip(x.split(shares), y.split(shares), strict=True))
    for (path, expected), got in zip(alone.named_parameters(), shared.parameters(), strict=True):
        error = (got - expected).norm() / expected.norm()
        assert error <= rtol, path


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_client_equals_one_process_to_the_bit(recipe: str) -> None:
    model = make_model(torch.float32)
    weights = weights_of(model)
    outer = OuterStep(RECIPES[recipe], weights, layout_of(model, "F32"))
    optimizer = local_optimizer(RECIPES[recipe], model)
    for x, y in batches(torch.float32):
        gradient = gradients(model, x, y)
        optimizer.step()
        outer.step(gradient)
    for name, expected in model.named_parameters():
        assert torch.equal(weights[name], expected)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_a_checkpoint_in_mid_run_goes_on_identically(recipe: str, name: str, dtype: torch.dtype) -> None:
    layout = layout_of(make_model(dtype), name)
    means = [{t.name: torch.randn(t.shape) for t in layout.tensors} for _ in range(8)]
    weights = weights_of(make_model(dtype))
    outer = OuterStep(RECIPES[recipe], weights, layout)
    for mean in means[:4]:
        outer.step(mean)
    saved_weights, saved_state = save(weights), save(outer.state())
    resumed_weights = load(saved_weights)
    resumed = OuterStep(RECIPES[recipe], resumed_weights, layout)
    resumed.load(load(saved_state))
    for mean in means[4:]:
        outer.step(mean)
        resumed.step(mean)
    assert all(torch.equal(weights[n], resumed_weights[n]) for n in weights)
    assert save(outer.state()) == save(resumed.state())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_parameter_without_a_gradient_is_passed_over_as_in_one_process(recipe: str) -> None:
    model = make_model(torch.float32)
    weights = weights_of(model)
    outer = OuterStep(RECIPES[recipe], weights, layout_of(model, "F32"))
    optimizer = local_optimizer(RECIPES[recipe], model)
    names = [name for name, _ in model.named_parameters()]
    for number, (x, y) in enumerate(batches(torch.float32)):
        gradient = gradients(model, x, y)
        untouched = {names[0]} if number % 2 else set(names[1:])
        for name, parameter in model.named_parameters():
            if name in untouched:
                parameter.grad, gradient[name] = None, torch.zeros_like(parameter)
        optimizer.step()
        outer.step(gradient, untouched)
    for name, expected in model.named_parameters():
        assert torch.equal(weights[name], expected), name


def test_plain_averaging_keeps_no_state() -> None:
    weights = {"w": torch.ones(2)}
    outer = OuterStep(OuterOptimizer(), weights, Layout((TensorSpec("w", "F32", (2,)),)))
    outer.step({"w": torch.full((2,), 0.25)})
    assert outer.state() == {}
    assert weights["w"].tolist() == [0.75, 0.75]


def test_steps_smaller_than_the_weights_precision_are_not_lost() -> None:
    weights = {"w": torch.ones(1, dtype=torch.bfloat16)}
    outer = OuterStep(OuterOptimizer(), weights, Layout((TensorSpec("w", "BF16", (1,)),)))
    for _ in range(100):
        outer.step({"w": torch.full((1,), 1e-3)})
    assert weights["w"].item() == pytest.approx(0.9, abs=0.004)
    assert list(outer.state()) == ["master.w"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_masters_hold_what_is_not_published(recipe: str) -> None:
    layout = layout_of(make_model(torch.float32), "F32")
    exact, held = weights_of(make_model(torch.float32)), weights_of(make_model(torch.float32))
    publishing = OuterStep(RECIPES[recipe], exact, layout)
    holding = OuterStep(RECIPES[recipe], held, layout, publishes=False)
    before = {name: value.clone() for name, value in held.items()}
    difference = {name: torch.full_like(value, 7.0) for name, value in held.items()}
    for _ in range(3):
        mean = {t.name: torch.randn(t.shape) for t in layout.tensors}
        publishing.step(mean)
        holding.step(mean)
        assert all(torch.equal(held[n], before[n]) for n in held)
        holding.unpublished(difference)
        for name, value in difference.items():
            assert torch.equal(value, exact[name] - before[name])
    assert {f"master.{name}" for name in held} <= holding.state().keys()
    assert all(torch.equal(holding.state()[f"master.{name}"], exact[name]) for name in held)


def test_masters_are_of_the_weights_precision_or_better() -> None:
    layout = Layout(tuple(TensorSpec(name, name, (1,)) for name in ("BF16", "F16", "F32", "F64")))
    weights = {
        name: torch.ones(1, dtype=dtype)
        for name, dtype in TORCH_DTYPES.items()
        if name in {t.name for t in layout.tensors}
    }
    outer = OuterStep(OuterOptimizer(options={"lr": 1e-3}), weights, layout, publishes=False)
    outer.step({name: torch.ones(1, dtype=torch.float64 if name == "F64" else torch.float32) for name in weights})
    dtypes = {key: value.dtype for key, value in outer.state().items()}
    assert dtypes == {f"master.{n}": torch.float64 if n == "F64" else torch.float32 for n in weights}
    difference = {name: torch.empty(1, dtype=dtypes[f"master.{name}"]) for name in weights}
    outer.unpublished(difference)
    assert all(value.item() == pytest.approx(-1e-3, rel=1e-4) for value in difference.values())


def test_parameters_in_no_group_differ_by_nothing() -> None:
    layout = Layout((TensorSpec("head", "F32", (1,)), TensorSpec("trunk", "F32", (1,))))
    weights = {"head": torch.ones(1), "trunk": torch.ones(1)}
    spec = OuterOptimizer(groups=(ParameterGroup(names=("head",)),))
    outer = OuterStep(spec, weights, layout, publishes=False)
    outer.step({"head": torch.ones(1), "trunk": torch.ones(1)})
    difference = {"head": torch.full((1,), 7.0), "trunk": torch.full((1,), 7.0)}
    outer.unpublished(difference)
    assert {name: value.item() for name, value in difference.items()} == {"head": -1.0, "trunk": 0.0}


def test_buffers_are_set_and_frozen_and_ungrouped_tensors_stay() -> None:
    layout = Layout(
        (
            TensorSpec("count", "I64", (), Role.BUFFER),
            TensorSpec("head", "F32", (1,)),
            TensorSpec("mean", "F16", (1,), Role.BUFFER),
            TensorSpec("table", "F32", (1,), Role.FROZEN),
            TensorSpec("trunk", "F32", (1,)),
        )
    )
    weights = {t.name: torch.ones(t.shape) for t in layout.tensors}
    weights |= {"count": torch.tensor(1), "mean": torch.ones(1, dtype=torch.float16)}
    spec = OuterOptimizer(groups=(ParameterGroup(names=("head", "table")),))
    OuterStep(spec, weights, layout).step(
        {"count": torch.tensor(7), "head": torch.ones(1), "mean": torch.tensor([0.5]), "trunk": torch.ones(1)}
    )
    assert {name: value.item() for name, value in weights.items()} == {
        "count": 7,
        "head": 0.0,
        "mean": 0.5,
        "table": 1.0,
        "trunk": 1.0,
    }
    assert weights["mean"].dtype == torch.float16


ONE = Layout((TensorSpec("w", "F32", (2,)),))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (OuterOptimizer(options={"lr": 1.0, "beta": 2.0}), "sgd has no option 'beta'; it has dampening, lr"),
        (OuterOptimizer(name="adamw", options={"momentum": 0.9}), "adamw has no option 'momentum'"),
        (OuterOptimizer(groups=(ParameterGroup(names=("w",), options={"eps": 1.0}),)), "no option 'eps'"),
        (OuterOptimizer(options={"lr": -1.0}), "refuses its options: lr is -1.0, it must not be negative"),
        (OuterOptimizer(name="adam", options={"betas": 0.9}), "refuses its options"),
        (OuterOptimizer(options={"lr": 1.0, "nesterov": True}), "nesterov needs a momentum"),
        (OuterOptimizer(groups=(ParameterGroup(names=("ghost",)),)), "'ghost', which is no parameter"),
        (OuterOptimizer(groups=(ParameterGroup(names=("w",)),) * 2), "twice"),
        (OuterOptimizer(groups=(ParameterGroup(names=("w", "w")),)), "twice"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_at_submission(spec: OuterOptimizer, says: str) -> None:
    with pytest.raises(InvalidTask, match=says):
        check_outer_optimizer(spec, ONE)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(InvalidTask, match="no parameter to train"):
        check_outer_optimizer(OuterOptimizer(), Layout((TensorSpec("n", "I64", (), Role.BUFFER),)))


def test_options_that_only_change_how_it_is_computed_are_ignored() -> None:
    check_outer_optimizer(OuterOptimizer(options={"lr": 1.0, "foreach": True, "fused": None}), ONE)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"momentum_buffer.ghost": torch.zeros(2)}, "no parameter 'ghost'"),
        ({"momentum_buffer.w": torch.zeros(3)}, r"\[3\], its parameter \[2\]"),
        ({"step.w": torch.zeros(2)}, "'step.w'"),
        ({"master.w": torch.zeros(2, dtype=torch.float64)}, "'master.w' of the optimizer state is torch.float64"),
    ],
)
def test_a_state_of_another_model_is_refused(state: dict[str, Tensor], says: str) -> None:
    outer = OuterStep(RECIPES["sgd"], {"w": torch.ones(2)}, ONE)
    with pytest.raises(LayoutMismatch, match=says):
        outer.load(state)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_tensor_that_is_not_finite_is_named(dtype: str, bad: float, at: int) -> None:
    tensors = {"good": torch.ones(3), "bad": torch.ones(1000).to(TORCH_DTYPES[dtype])}
    assert all_finite(tensors) is None
    tensors["bad"][at] = bad
    assert all_finite(tensors) == "bad"


def test_empty_and_integer_tensors_are_finite() -> None:
    assert all_finite({"a": torch.empty(0), "b": torch.tensor([2**62]), "c": torch.tensor(True)}) is None
