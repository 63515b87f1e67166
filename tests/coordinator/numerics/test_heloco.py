"""HeLoCo: how an update is turned, by an independent float64 reference in all cases and on the borders between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from coordinator.numerics.aggregate import Aggregate
from coordinator.numerics.heloco import UNTURNED, TurnedMean, turn
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.update_rules import options_of
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import TensorReader
from protocol.contradictions import contradiction
from protocol.recipe import Mode, OuterOptimizer, ParameterGroup, Recipe
from protocol.schedule import Schedule, Segment
from protocol.tensors import Layout, TensorSpec
from tests.coordinator.numerics.aggregate_references import turned

Array = npt.NDArray[np.float64]
DEFAULTS = options_of("heloco", {})
LAYOUT = Layout((TensorSpec("w", "F64", (2, 3)),))
TWO = Layout((TensorSpec("a", "F32", (40,)), TensorSpec("b", "F32", (5, 6))))


class Remembering:
    """An outer optimizer that remembers just these momenta."""

    def __init__(self, momenta: Mapping[str, torch.Tensor], **options: float) -> None:
        self._momenta, self._options = momenta, {**DEFAULTS, **options}

    def kept_of(self, name: str) -> dict[str, torch.Tensor]:
        return {"momentum_buffer": self._momenta[name]} if name in self._momenta else {}

    def options_of(self, _name: str) -> dict[str, Any]:
        return self._options


def mean_of(updates: Sequence[Array], momentum: Array, scales: Sequence[float] = (), **options: float) -> Array:
    """Return the mean of updates of one to so many samples."""
    aggregate = TurnedMean(LAYOUT)
    aggregate.follow(Remembering({"w": torch.from_numpy(momentum.copy())}, **options))
    for samples, (update, scale) in enumerate(zip(updates, scales or [1.0] * len(updates), strict=True), 1):
        aggregate.fold(TensorReader({"w": torch.from_numpy(update.copy())}), samples, scale)
    return aggregate.result()["w"].numpy().copy()


def pair_of(cosine: float, length: float, seed: int) -> tuple[Array, Array]:
    """Return an update and a momentum, lengths ``length`` and 1, with that cosine between them."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 6))
    one /= np.linalg.norm(one)
    other -= one * (one @ other)
    other /= np.linalg.norm(other)
    update = length * (cosine * one + math.sqrt(1 - cosine**2) * other)
    return update.reshape(2, 3), one.reshape(2, 3)


cosines = st.one_of(st.floats(-1, 1), st.sampled_from([-1.0, 0.0, 1.0]))
lengths = st.floats(1e-3, 1e3)
seeds = st.integers(0, 99)
tried = st.fixed_dictionaries(
    {},
    optional={
        "c_ok": st.floats(0, 1),
        "k_s": st.floats(0, 4),
        "k_d": st.floats(0, 4),
        "kappa": st.floats(0, 9),
        "beta_max": st.floats(0, 1),
    },
)


@given(cosine=cosines, length=lengths, seed=seeds, options=tried)
def test_an_update_is_turned_as_the_reference_turns_it(
    cosine: float, length: float, seed: int, options: dict[str, float]
) -> None:
    update, momentum = pair_of(cosine, length, seed)
    expected = turned(update, momentum, {**DEFAULTS, **options})
    found = mean_of([update], momentum, **options)
    if min(abs(cosine), abs(cosine - options.get("c_ok", 0.2))) > 1e-9:  # on a border rounding chooses the side
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * length)


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [
        (0.2, UNTURNED),
        (1.0, UNTURNED),
        (math.nextafter(0.2, 0), None),
        (0.0, (0.75 / math.sqrt(0.625), 0.25 / math.sqrt(0.625))),
        (-0.0, (0.75 / math.sqrt(0.625), 0.25 / math.sqrt(0.625))),
        (-0.8, (1.0, 0.08)),
    ],
)
def test_the_borders_belong_to_the_case_above(cosine: float, expected: tuple[float, float] | None) -> None:
    """At length 1 and kappa 3 the confidence is a quarter."""
    found = turn(1.0, 1.0, cosine, {**DEFAULTS, "eps": 0.0})
    assert (found != UNTURNED) if expected is None else found == pytest.approx(expected)


def test_of_what_points_against_it_half_is_taken_off_at_most() -> None:
    assert turn(1e9, 1.0, -1e9, {**DEFAULTS, "k_s": 9.0}) == (1.0, pytest.approx(0.5e9))


@given(length=lengths, seed=seeds)
def test_a_zero_has_no_direction(length: float, seed: int) -> None:
    update, momentum = pair_of(-0.5, length, seed)
    nothing = np.zeros((2, 3))
    np.testing.assert_array_equal(mean_of([update], nothing), update)
    np.testing.assert_array_equal(mean_of([nothing], momentum), nothing)
    np.testing.assert_array_equal(mean_of([nothing], nothing), nothing)


@given(cosine=cosines, length=lengths, seed=seeds, unit=st.floats(1e-3, 1e3))
def test_the_unit_of_update_and_momentum_does_not_matter(cosine: float, length: float, seed: int, unit: float) -> None:
    update, momentum = pair_of(cosine, length, seed)
    found, scaled = mean_of([update], momentum), mean_of([unit * update], unit * momentum)
    if min(abs(cosine), abs(cosine - 0.2)) > 1e-9:
        np.testing.assert_allclose(scaled, unit * found, rtol=1e-4, atol=1e-4 * unit * length)  # but for eps


@given(cosine=st.floats(0.21, 1), length=lengths, seed=seeds)
def test_what_agrees_stays_to_the_bit(cosine: float, length: float, seed: int) -> None:
    update, momentum = pair_of(cosine, length, seed)
    np.testing.assert_array_equal(mean_of([update], momentum), update)


@given(cosine=st.floats(0, 0.19), length=lengths, seed=seeds, k_d=st.floats(0, 9))
def test_what_is_askew_keeps_its_length_and_comes_nearer(cosine: float, length: float, seed: int, k_d: float) -> None:
    update, momentum = pair_of(cosine, length, seed)
    found = mean_of([update], momentum, k_d=k_d)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(update), rel=1e-9)
    assert np.vdot(found, momentum) >= np.vdot(update, momentum) - 1e-9 * length


@given(cosine=st.floats(-1, -0.01), length=lengths, seed=seeds)
def test_what_points_against_loses_of_that_and_of_nothing_else(cosine: float, length: float, seed: int) -> None:
    update, momentum = pair_of(cosine, length, seed)
    difference = mean_of([update], momentum) - update
    along = np.vdot(difference, momentum)
    assert 0 < along <= 0.5 * -cosine * length * (1 + 1e-9)
    np.testing.assert_allclose(difference, along * momentum, atol=1e-12 * length)


@given(
    drawn=st.lists(st.tuples(cosines, lengths, st.sampled_from([1.0, 2**-0.5, 0.5])), min_size=1, max_size=5),
    seed=seeds,
)
def test_the_mean_is_of_turned_updates_each_by_its_samples_and_staleness(
    drawn: list[tuple[float, float, float]], seed: int
) -> None:
    momentum = pair_of(1.0, 1.0, seed)[1]
    updates = [pair_of(cosine, length, seed)[0] for cosine, length, _ in drawn]
    if min(min(abs(cosine), abs(cosine - 0.2)) for cosine, _, _ in drawn) < 1e-9:
        return
    scales = [scale for *_, scale in drawn]
    expected = np.average(
        [turned(update, momentum, DEFAULTS) for update in updates],
        axis=0,
        weights=[samples * scale for samples, scale in enumerate(scales, 1)],
    )
    np.testing.assert_allclose(mean_of(updates, momentum, scales), expected, rtol=1e-9, atol=1e-9 * 1e3)


def test_each_tensor_is_turned_by_itself_with_the_options_of_its_group() -> None:
    groups = (ParameterGroup(names=("a",)), ParameterGroup(names=("b",), options={"c_ok": 0.0, "k_s": 0.0}))
    outer = OuterStep(OuterOptimizer(name="heloco", groups=groups), {"a": torch.zeros(40), "b": torch.zeros(5, 6)}, TWO)
    outer.step({"a": torch.ones(40), "b": torch.ones(5, 6)})
    aggregate = TurnedMean(TWO)
    aggregate.follow(outer)
    aggregate.fold(TensorReader({"a": -torch.ones(40), "b": -torch.ones(5, 6)}), 1)
    mean = aggregate.result()
    assert torch.equal(mean["b"], -torch.ones(5, 6))
    momentum = np.full(40, 0.1)
    np.testing.assert_allclose(mean["a"].numpy(), turned(-np.ones(40), momentum, DEFAULTS), rtol=1e-6)


def trained(rounds: int, *, cut: int | None = None) -> dict[str, torch.Tensor]:
    """Return weights and state after some versions, of two updates each; written and read again before ``cut``."""
    weights = {"a": torch.ones(40), "b": torch.ones(5, 6)}
    outer, aggregate = OuterStep(OuterOptimizer(name="heloco"), weights, TWO), TurnedMean(TWO)
    aggregate.follow(outer)
    for version in range(rounds):
        if version == cut:
            kept, outer, aggregate = (
                load(save(outer.state())),
                OuterStep(OuterOptimizer(name="heloco"), weights, TWO),
                TurnedMean(TWO),
            )
            outer.load(kept)
            aggregate.follow(outer)
        aggregate.reset()
        generator = torch.Generator().manual_seed(version)
        for samples in (3, 5):
            update = {spec.name: torch.randn(spec.shape, generator=generator) for spec in TWO.parameters}
            aggregate.fold(TensorReader(update), samples)
        outer.step(aggregate.result(), version=version)
    return {**weights, **outer.state()}


def test_a_restart_changes_no_bit() -> None:
    whole, resumed = trained(6), trained(6, cut=3)
    assert whole.keys() == {"a", "b", "momentum_buffer.a", "momentum_buffer.b", "ahead.a", "ahead.b"}
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_version_is_ahead_of_what_is_stepped_by_the_last_rate() -> None:
    falling = Schedule(segments=(Segment(steps=3, coefficients=(0.5, -0.25)),), least=0.25, most=0.75)
    found = {}
    for ahead in (False, True):
        spec = OuterOptimizer(name="heloco", options={"look_ahead": ahead}, schedules={"lr": falling})
        weights = {"w": torch.ones(2, 3, dtype=torch.float64)}
        outer = OuterStep(spec, weights, LAYOUT)
        for version in range(3):
            outer.step({"w": torch.full((2, 3), version + 1.0, dtype=torch.float64)}, version=version)
        found[ahead] = (weights["w"], outer.state()["momentum_buffer.w"])
    (behind, momentum), (ahead_of, same) = found[False], found[True]
    assert torch.equal(momentum, same)
    torch.testing.assert_close(ahead_of, behind - 0.25 * 0.9 * momentum, rtol=1e-7, atol=0)


CONSTANT = {"segments": [{"steps": 1, "coefficients": [1.0]}], "least": 1, "most": 1}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": Mode.GRADIENTS}, "heloco is for weights mode"),
    ({}, "heloco turns late updates, and in this recipe none is: give buffer, quorum_clients or max_staleness"),
    ({"buffer": 2, "outer": {"name": "heloco", "schedules": {"kappa": CONSTANT}}}, "give kappa no schedule"),
    (
        {"buffer": 2, "outer": {"name": "heloco", "groups": [{"names": ["w"], "schedules": {"k_d": CONSTANT}}]}},
        "give k_d no schedule",
    ),
    ({"buffer": 2, "outer": {"name": "heloco", "options": {"eps": 0.0}}}, "eps is 0.0"),
    ({"buffer": 2, "outer": {"name": "heloco", "options": {"delay": 4}}}, "has no option 'delay'"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_contradicts_it_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    recipe = Recipe.model_validate({"rounds": 1, "outer": {"name": "heloco"}, **fields})
    assert said in (contradiction(recipe) or "")


@pytest.mark.parametrize("fields", [{"buffer": 2}, {"quorum_clients": 2}, {"max_staleness": 1}], ids=str)
def test_where_updates_may_be_late_it_is_taken(fields: dict[str, Any]) -> None:
    assert contradiction(Recipe.model_validate({"rounds": 1, "outer": {"name": "heloco"}, **fields})) is None


def distance(name: str, late: int, lr: float, **options: object) -> float:
    """Return how far from a quadratic's minimum the last hundred of 200 versions are in the mean; it begins at 5.2."""
    layout = Layout((TensorSpec("x", "F64", (27,)),))
    shares = torch.linspace(0.2, 1.0, 27, dtype=torch.float64)
    weights = {"x": torch.ones(27, dtype=torch.float64)}
    outer = OuterStep(OuterOptimizer.model_validate({"name": name, "options": {"lr": lr, **options}}), weights, layout)
    aggregate: Aggregate = TurnedMean(layout) if name == "heloco" else WeightedMean(layout)
    aggregate.follow(outer)
    versions, distances = [weights["x"].clone()] * (late + 1), []
    for version in range(200):
        aggregate.reset()
        aggregate.fold(TensorReader({"x": shares * versions[-1 - late]}), 1)
        outer.step(aggregate.result(), version=version)
        versions = [*versions[1:], weights["x"].clone()]
        distances.append(weights["x"].norm().item())
    return sum(distances[100:]) / 100


@pytest.mark.parametrize(
    ("late", "heloco", "unturned", "delayed", "plain"),
    [(2, 1.52e-4, 1.01e-4, 3.06e-2, 3.03e-6), (4, 8.35e-4, 7.90e-4, 5.75e-1, 1.39e-3)],
)
def test_on_a_quadratic_with_late_updates(
    late: int, heloco: float, unturned: float, delayed: float, plain: float
) -> None:
    """Each at its best rate of six: ahead of delayed Nesterov, by the kind of momentum rather than by turning."""
    tried: list[tuple[str, dict[str, object], float]] = [
        ("heloco", {}, heloco),
        ("heloco", {"c_ok": 0.0, "k_s": 0.0}, unturned),
        ("delayed_nesterov", {}, delayed),
        ("sgd", {}, plain),
    ]
    for name, options, expected in tried:
        best = min(distance(name, late, lr, **options) for lr in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0))
        assert best == pytest.approx(expected, rel=0.02), name
