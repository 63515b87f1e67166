"""Every optimizer against an independent float64 reference, and against torch's own class to the bit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from coordinator.numerics.outer_optimizer import OuterStep, check_outer_optimizer
from coordinator.numerics.update_rules import RULES, options_of
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask, LayoutMismatch
from protocol.optimizers import IGNORED_OPTIONS, OPTIMIZERS
from protocol.recipe import OuterOptimizer, ParameterGroup, Recipe
from protocol.schedule import Schedule, Segment
from protocol.tensors import Layout, TensorSpec
from tests.coordinator.numerics.optimizer_references import REFERENCES

OF_TORCH = sorted(name for name, optimizer in OPTIMIZERS.items() if optimizer.torch_name is not None)
SHAPES = {"a.weight": (3, 2), "b.weight": (2, 4), "c.bias": (5,)}
STEPS, CUT = 6, 3
_small = st.floats(0.0, 0.5)
_pairs = st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.999))
TRIED: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.floats(1e-3, 0.1),
    "weight_decay": st.floats(0, 0.2),
    "momentum": st.floats(0, 0.95),
    "dampening": st.floats(-0.5, 0.9),
    "betas": _pairs,
    "beta1": st.floats(0, 0.99),
    "beta2": st.floats(0, 0.999),
    "tau": st.floats(1e-4, 0.5),
    "rho": st.floats(0, 1),
    "alpha": st.floats(0.5, 0.99),
    "beta2_decay": st.floats(-1, -0.1),
    "d": st.floats(1, 3),
    "lr_decay": _small,
    "initial_accumulator_value": _small,
    "lambd": st.floats(0, 0.1),
    "t0": st.floats(0, 9),
    "momentum_decay": st.floats(0, 0.1),
    "ns_steps": st.integers(1, 6),
    "delay": st.integers(1, 4),
    "activation": st.floats(0.0, 0.25),
    "adjust_lr_fn": st.sampled_from([None, "original", "match_rms_adamw"]),
    "etas": st.tuples(st.floats(0.1, 0.9), st.floats(1.1, 2.0)),
    "step_sizes": st.tuples(st.floats(0, 1e-3), st.floats(0.1, 0.5)),
    **dict.fromkeys(
        ("maximize", "amsgrad", "nesterov", "centered", "decoupled_weight_decay", "look_ahead"), st.booleans()
    ),
}
"""What is tried of each option; those that are absent here (eps, ns_coefficients) keep their defaults."""


@st.composite
def options(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Return some of an optimizer's options."""
    known = OPTIMIZERS[name].options.keys() & TRIED.keys()
    chosen = {key: draw(TRIED[key]) for key in sorted(known) if draw(st.booleans())}
    if name == "sgd" and chosen.get("nesterov"):
        chosen |= {"momentum": 0.7, "dampening": 0.0}
    return chosen


def spec_of(name: str, groups: Mapping[tuple[str, ...], dict[str, Any]]) -> OuterOptimizer:
    """Return the optimizer with its own default rate, and a group for each of these tuples of names."""
    written = [{"names": names, "options": chosen} for names, chosen in groups.items()]
    lr = OPTIMIZERS[name].options["lr"].default
    return OuterOptimizer.model_validate({"name": name, "options": {"lr": lr}, "groups": written})


def layout_of(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Layout:
    return Layout(tuple(TensorSpec(name, dtype, shape) for name, shape in sorted(shapes.items())))


def random_tensors(seed: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.tensor(rng.normal(size=shape), dtype=dtype) for name, shape in shapes.items()}


def shapes_for(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in SHAPES.items() if len(shape) == 2 or not OPTIMIZERS[name].matrices_only}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@settings(max_examples=12)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_steps_equal_the_reference_with_groups_and_a_restart_in_between(
    name: str, data: st.DataObject, seed: int
) -> None:
    shapes, (first, *rest) = shapes_for(name), shapes_for(name)
    groups = {(first,): data.draw(options(name)), tuple(rest): data.draw(options(name))}
    spec, layout = spec_of(name, groups), layout_of(shapes, "F64")
    weights = random_tensors(seed, shapes, torch.float64)
    expected = {key: value.numpy().copy() for key, value in weights.items()}
    kept: dict[str, dict[str, Any]] = {key: {"float_eps": torch.finfo(torch.float64).eps} for key in shapes}
    outer = OuterStep(spec, weights, layout)
    for step in range(STEPS):
        if step == CUT:  # through a file, as a checkpoint is
            outer, state = OuterStep(spec, weights, layout), load(save(outer.state()))
            outer.load(state)
        mean = random_tensors(seed + 1 + step, shapes, torch.float64)
        outer.step(mean, version=step)
        for names, own in groups.items():
            for key in names:
                kept[key]["t"] = step + 1
                expected[key] = REFERENCES[name](expected[key], mean[key].numpy(), kept[key], options_of(name, own))
    # The scalars of a state are float32, as in torch: ASGD's, NAdam's and HeLoCo's show. Muon iterates in bfloat16.
    tolerance = {"asgd": 1e-6, "nadam": 1e-6, "heloco": 1e-6, "muon": 5e-2}.get(name, 1e-9)
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key].numpy(), value, rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", OF_TORCH)
@settings(max_examples=6)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_steps_are_torchs_own_to_the_bit(name: str, data: st.DataObject, seed: int) -> None:
    shapes, (first, *rest) = shapes_for(name), shapes_for(name)
    groups = {(first,): data.draw(options(name)), tuple(rest): data.draw(options(name))}
    for own in groups.values():
        own.pop("initial_accumulator_value", None)  # torch takes that of the first group for all
    weights = random_tensors(seed, shapes, torch.float32)
    parameters = {key: torch.nn.Parameter(value.clone()) for key, value in weights.items()}
    written = [{"params": [parameters[key] for key in names], **own} for names, own in groups.items()]
    torch_class = getattr(torch.optim, str(OPTIMIZERS[name].torch_name))
    optimizer = torch_class(written, lr=OPTIMIZERS[name].options["lr"].default)
    outer = OuterStep(spec_of(name, groups), weights, layout_of(shapes, "F32"))
    for step in range(STEPS):
        mean = random_tensors(seed + 1 + step, shapes, torch.float32)
        for key, parameter in parameters.items():
            parameter.grad = mean[key].clone()
        optimizer.step()
        outer.step(mean)
    for key, parameter in parameters.items():
        assert torch.equal(weights[key], parameter), key


def test_every_optimizer_has_a_rule_and_torchs_own_options_and_defaults() -> None:
    assert OPTIMIZERS.keys() == RULES.keys() == REFERENCES.keys()
    for optimizer in map(OPTIMIZERS.__getitem__, OF_TORCH):
        signature = inspect.signature(getattr(torch.optim, str(optimizer.torch_name)).__init__).parameters
        theirs = {key: signature[key].default for key in signature.keys() - {"self", "params"} - IGNORED_OPTIONS}
        if optimizer.torch_name == "Adam":
            del theirs["decoupled_weight_decay"]  # with it, it is adamw
        assert {key: option.default for key, option in optimizer.options.items()} == theirs


def test_what_torch_has_besides_needs_more_than_a_gradient() -> None:
    classes = {kind for kind in vars(torch.optim).values() if isinstance(kind, type)}
    names = {kind.__name__ for kind in classes if issubclass(kind, torch.optim.Optimizer)}
    known = {OPTIMIZERS[name].torch_name for name in OF_TORCH}
    assert names - known == {"Optimizer", "LBFGS", "SparseAdam"}


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("sgd", {"lr": -1.0}),
        ("sgd", {"nesterov": True}),
        ("adadelta", {"rho": 1.5}),
        ("adafactor", {"beta2_decay": 0.1}),
        ("adafactor", {"d": 0.5}),
        ("adagrad", {"initial_accumulator_value": -1.0}),
        ("adamax", {"betas": (0.9, 1.0)}),
        ("muon", {"adjust_lr_fn": "mine"}),
        ("nadam", {"momentum_decay": -1.0}),
        ("radam", {"eps": -1e-9}),
        ("rmsprop", {"momentum": -0.1}),
        ("rprop", {"etas": (0.5, 0.9)}),
    ],
    ids=str,
)
def test_an_option_that_torch_refuses_is_named_by_both_sides(name: str, chosen: dict[str, Any]) -> None:
    torch_class = getattr(torch.optim, str(OPTIMIZERS[name].torch_name))
    with pytest.raises((ValueError, AssertionError)):
        torch_class([torch.nn.Parameter(torch.zeros(2, 2))], **chosen)
    spec = OuterOptimizer.model_validate({"name": name, "options": chosen})
    said = contradiction(Recipe(rounds=1, outer=spec)) or ""
    assert said.startswith(f"the outer optimizer {name} refuses its options: {next(iter(chosen))}")
    with pytest.raises(InvalidTask) as refused:
        check_outer_optimizer(spec, layout_of({"w": (2, 2)}, "F32"))
    assert refused.value.message == said


@pytest.mark.parametrize("chosen", [{"lr": "0.1"}, {"lr": True}, {"betas": 0.9}, {"betas": (0.1, 0.2, 0.3)}], ids=str)
def test_an_option_of_another_type_is_named(chosen: dict[str, Any]) -> None:
    said = OPTIMIZERS["adam"].problem(chosen)
    assert said is not None
    assert said.startswith(f"refuses its options: {next(iter(chosen))} is ")


@pytest.mark.parametrize("chosen", [{"tau": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"betas": (0.9, 0.9)}], ids=str)
def test_what_a_servers_optimizer_cannot_use_is_refused_at_submission(chosen: dict[str, Any]) -> None:
    outer = OuterOptimizer.model_validate({"name": "fedadam", "options": chosen})
    assert next(iter(chosen)) in (contradiction(Recipe(rounds=1, outer=outer)) or "")


def test_a_bad_option_of_a_group_is_named() -> None:
    group = ParameterGroup(names=("w",), options={"lr": -0.5})
    said = contradiction(Recipe(rounds=1, outer=OuterOptimizer(groups=(group,))))
    assert said == "the outer optimizer sgd refuses its options: lr is -0.5, it must not be negative"


@pytest.mark.parametrize(("name", "lr"), [("sgd", 1.0), ("adam", 1e-3), ("fedadagrad", 0.1), ("fedyogi", 0.1)])
def test_an_optimizer_without_options_has_its_own_rate_and_sgd_is_plain_averaging(name: str, lr: float) -> None:
    assert options_of(name, OuterOptimizer.model_validate({"name": name}).options)["lr"] == lr


@settings(max_examples=20)
@given(scale=st.floats(1e-3, 1e3), name=st.sampled_from(["fedadagrad", "fedadam", "fedyogi"]), seed=st.integers(0, 99))
def test_a_servers_optimizer_takes_equal_steps_in_any_unit_of_the_updates(name: str, scale: float, seed: int) -> None:
    """With tau in the updates' unit: what is adaptive about them."""
    shapes, found = {"w": (4,)}, []
    for unit in (1.0, scale):
        weights = random_tensors(seed, shapes, torch.float64)
        outer = OuterStep(spec_of(name, {("w",): {"tau": 1e-3 * unit}}), weights, layout_of(shapes, "F64"))
        for step in range(STEPS):
            outer.step({"w": unit * random_tensors(seed + 1 + step, shapes, torch.float64)["w"]})
        found.append(weights["w"])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(momentum=st.floats(0.01, 0.95), activation=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_nesterov_that_is_not_delayed_is_nesterov(momentum: float, activation: float, seed: int) -> None:
    delayed = {"momentum": momentum, "delay": 1, "activation": activation}
    torch.testing.assert_close(
        stepped("delayed_nesterov", delayed, seed, STEPS),
        stepped("sgd", {"momentum": momentum, "nesterov": True}, seed),
    )


@settings(max_examples=20)
@given(delay=st.integers(1, 5), windows=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_delayed_nesterov_goes_as_far_as_nesterov_on_the_means_of_its_windows(
    delay: int, windows: int, seed: int, data: st.DataObject
) -> None:
    """In between only the gradients' own steps are taken; without activation nothing else differs."""
    momentum = data.draw(st.floats(0.01, 0.95))
    gradients = [random_tensors(seed + n, {"w": (4,)}, torch.float64)["w"] for n in range(delay * windows)]
    means = [sum(gradients[n : n + delay], torch.zeros(())) / delay for n in range(0, len(gradients), delay)]
    found = []
    for name, chosen, steps in (
        ("delayed_nesterov", {"momentum": momentum, "delay": delay, "activation": 0.0}, gradients),
        ("sgd", {"momentum": momentum, "nesterov": True}, means),
    ):
        weights = {"w": torch.zeros(4, dtype=torch.float64)}
        outer = OuterStep(spec_of(name, {("w",): {"lr": 0.5, **chosen}}), weights, layout_of({"w": (4,)}, "F64"))
        for gradient in steps:
            outer.step({"w": gradient.clone()})
        found.append(weights["w"])
    torch.testing.assert_close(*found)


def stepped(name: str, chosen: dict[str, Any], seed: int, steps: int = STEPS) -> torch.Tensor:
    """Return what an optimizer makes of a tensor in some steps."""
    weights = random_tensors(seed, {"w": (4,)}, torch.float64)
    outer = OuterStep(spec_of(name, {("w",): {"lr": 0.5, **chosen}}), weights, layout_of({"w": (4,)}, "F64"))
    for step in range(steps):
        outer.step({"w": random_tensors(seed + 1 + step, {"w": (4,)}, torch.float64)["w"]})
    return weights["w"]


def test_more_momentum_than_all_of_it_is_refused() -> None:
    outer = OuterOptimizer(name="delayed_nesterov", options={"delay": 5, "activation": 0.25})
    said = contradiction(Recipe(rounds=1, outer=outer))
    assert said is not None
    assert said.endswith("activation is 0.25, it must be at most 1 / delay, 0.2")
    assert contradiction(Recipe(rounds=1, outer=OuterOptimizer(name="delayed_nesterov"))) is None


def test_the_first_steps_of_a_servers_adam_are_short_for_its_bias_is_kept() -> None:
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    OuterStep(OuterOptimizer(name="fedadam"), weights, layout_of({"w": (1,)}, "F64")).step(
        {"w": torch.ones(1).double()}
    )
    assert weights["w"].item() == pytest.approx(-0.1 * 0.1 / (math.sqrt(0.99e-6 + 0.01) + 1e-3))


def test_muon_steps_matrices_and_nothing_else() -> None:
    check_outer_optimizer(OuterOptimizer(name="muon"), layout_of({"w": (2, 2)}, "F32"))
    with pytest.raises(InvalidTask, match=r"muon steps matrices only, and 'bias' is of \[5\]"):
        check_outer_optimizer(OuterOptimizer(name="muon"), layout_of({"bias": (5,), "w": (2, 2)}, "F32"))


def test_scheduled_options_follow_the_version_and_those_of_groups_go_first() -> None:
    falling = Schedule(segments=(Segment(steps=3, coefficients=(0.5, -0.25)),), least=0.25, most=0.75)
    spec = OuterOptimizer(
        options={"lr": 9.0},
        schedules={"lr": Schedule(segments=(Segment(steps=1, coefficients=(1.0,)),), least=1, most=1)},
        groups=(ParameterGroup(names=("a",)), ParameterGroup(names=("b",), schedules={"lr": falling})),
    )
    weights = {"a": torch.zeros(1), "b": torch.zeros(1)}
    outer = OuterStep(spec, weights, layout_of({"a": (1,), "b": (1,)}, "F32"))
    seen = []
    for version in range(4):
        outer.step({"a": torch.ones(1), "b": torch.ones(1)}, version=version)
        seen.append((weights["a"].item(), weights["b"].item()))
    assert seen == [(-1.0, -0.75), (-2.0, -1.25), (-3.0, -1.5), (-4.0, -1.75)]


def test_one_momentum_of_a_pair_can_be_scheduled() -> None:
    schedule = Schedule(segments=(Segment(steps=2, coefficients=(0.7, 0.2)),), least=0.5, most=0.9)
    spec = OuterOptimizer(name="adam", options={"lr": 0.1, "betas": (0.9, 0.99)}, schedules={"beta1": schedule})
    weights, kept = {"w": torch.ones(1, dtype=torch.float64)}, dict[str, Any]()
    expected = np.ones(1)
    outer = OuterStep(spec, weights, layout_of({"w": (1,)}, "F64"))
    for version, beta in enumerate((0.5, 0.9)):
        outer.step({"w": torch.full((1,), version + 1.0, dtype=torch.float64)}, version=version)
        kept["t"] = version + 1
        now = options_of("adam", {"lr": 0.1, "betas": (beta, 0.99)})
        expected = REFERENCES["adam"](expected, np.full(1, version + 1.0), kept, now)
    np.testing.assert_allclose(weights["w"].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("sgd", "beta1", 0.5, "has no number 'beta1'"),
        ("sgd", "nesterov", 0.5, "has no number 'nesterov'"),
        ("fedadagrad", "beta2", 0.5, "has no number 'beta2'"),
        ("fedadam", "beta2", 1.0, "beta2 gets to 1.0, it must be at least 0 and below 1"),
        ("adam", "beta2", 1.0, "beta2 gets to 1.0, it must be at least 0 and below 1"),
        ("adam", "lr", -1.0, "lr gets to -1.0, it must not be negative"),
    ],
)
def test_a_bad_schedule_is_named(name: str, option: str, value: float, says: str) -> None:
    schedules = {option: {"segments": [{"steps": 1, "coefficients": [value]}], "least": value, "most": value}}
    spec = OuterOptimizer.model_validate({"name": name, "schedules": schedules})
    with pytest.raises(InvalidTask, match=says):
        check_outer_optimizer(spec, layout_of({"w": (2,)}, "F32"))


def test_a_state_that_the_optimizer_does_not_keep_is_refused() -> None:
    outer = OuterStep(OuterOptimizer(name="adamax"), {"w": torch.ones(2)}, layout_of({"w": (2,)}, "F32"))
    with pytest.raises(LayoutMismatch, match=r"'momentum_buffer.w', which this optimizer does not keep"):
        outer.load({"momentum_buffer.w": torch.zeros(2)})
