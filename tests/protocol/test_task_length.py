"""How long a recipe trains: what is said before it starts is what a walk through its rounds comes to."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.recipe import Mode, Recipe
from protocol.task_length import (
    FOR_EVER,
    TaskLength,
    global_steps,
    rounds_of_epochs,
    rounds_per_epoch,
    samples_of_epochs,
    task_length,
)

_samples = st.integers(1, 300)
_round = st.integers(1, 60)
_batch = st.integers(1, 60)
_epochs = st.floats(0.01, 4.0)


def recipe_of(mode: Mode, round_samples: int, batch_samples: int, epochs: float | None, rounds: int | None) -> Recipe:
    return Recipe(mode=mode, round_samples=round_samples, batch_samples=batch_samples, epochs=epochs, rounds=rounds)


def walked(recipe: Recipe, train_samples: int) -> tuple[int, int]:
    """Return the rounds and samples after which a farm that commits each round in full has trained so many epochs."""
    assert recipe.epochs is not None
    smallest = min(2, recipe.round_samples, recipe.batch_samples)
    goal = max(int(recipe.epochs * train_samples), 1)
    rounds = trained = 0
    while trained < goal:
        left = train_samples - trained % train_samples
        size = min(recipe.round_samples, left)
        if 0 < left - size < smallest:
            size = left  # the stray sample comes along
        rounds, trained = rounds + 1, trained + size
    return rounds, trained


@given(_samples, _round, _batch, _epochs)
def test_rounds_of_epochs_are_those_of_a_walk(
    train_samples: int, round_samples: int, batch_samples: int, epochs: float
) -> None:
    recipe = recipe_of(Mode.GRADIENTS, round_samples, batch_samples, epochs, None)
    rounds, _ = walked(recipe, train_samples)
    assert rounds_of_epochs(recipe, epochs, train_samples) == rounds
    assert global_steps(recipe, train_samples) == rounds


@given(_samples, _round, _batch)
def test_an_epoch_is_a_whole_number_of_rounds(train_samples: int, round_samples: int, batch_samples: int) -> None:
    recipe = recipe_of(Mode.WEIGHTS, round_samples, batch_samples, 1.0, None)
    assert walked(recipe, train_samples) == (rounds_per_epoch(recipe, train_samples), train_samples)


@given(_samples, _round, _batch, st.integers(1, 20), _epochs)
def test_whichever_end_comes_first_counts(
    train_samples: int, round_samples: int, batch_samples: int, rounds: int, epochs: float
) -> None:
    both, by_rounds, by_epochs = (
        global_steps(recipe_of(Mode.WEIGHTS, round_samples, batch_samples, *ends), train_samples)
        for ends in ((epochs, rounds), (None, rounds), (epochs, None))
    )
    assert both == min(by_rounds, by_epochs)


@pytest.mark.parametrize("epochs", [1e300, math.inf])
def test_what_nobody_will_see_the_end_of_has_one(epochs: float) -> None:
    recipe = Recipe(mode=Mode.GRADIENTS, epochs=1.0, round_samples=8, batch_samples=8)
    assert samples_of_epochs(epochs, 100) == rounds_of_epochs(recipe, epochs, 100) == FOR_EVER


def test_without_a_row_there_is_one_round_as_for_a_task_that_is_refused_elsewhere() -> None:
    recipe = Recipe(mode=Mode.GRADIENTS, epochs=2.0, round_samples=8, batch_samples=8)
    assert rounds_of_epochs(recipe, 2.0, 0) == global_steps(recipe, 0) == 1


@given(st.sampled_from(list(Mode)), _samples, _round, _batch, st.none() | st.integers(1, 20), st.none() | _epochs)
def test_the_passes_are_those_that_the_steps_take(
    mode: Mode, train_samples: int, round_samples: int, batch_samples: int, rounds: int | None, epochs: float | None
) -> None:
    assume(rounds is not None or epochs is not None)
    recipe = recipe_of(mode, round_samples, batch_samples, epochs, rounds)
    length = task_length(recipe, mode, train_samples)
    assert length.steps == global_steps(recipe, train_samples)
    assert length.steps <= length.epochs * length.steps_per_epoch, "as Lightning estimates its steps: the lesser"
    if mode is Mode.GRADIENTS:
        assert (length.epochs - 1) * length.steps_per_epoch < length.steps
    elif rounds is None:
        assert length.epochs == max(1, math.ceil(samples_of_epochs(epochs or 0.0, train_samples) / train_samples))
    assert not length.is_endless


@pytest.mark.parametrize("mode", list(Mode))
def test_a_task_whose_end_nobody_sees_has_no_length(mode: Mode) -> None:
    endless = Recipe(mode=mode, epochs=1e9, round_samples=8, batch_samples=8)
    assert task_length(endless, mode, 10**8).is_endless
    assert not task_length(endless, mode, 1000).is_endless


@pytest.mark.parametrize("mode", list(Mode))
def test_what_says_no_end_is_one_pass(mode: Mode) -> None:
    class Trial:
        rounds = epochs = None
        round_samples = batch_samples = 10

    assert task_length(Trial(), mode, 95) == TaskLength(steps=10, steps_per_epoch=10, epochs=1)
