"""The benchmark of recipes: each is trained as it comes, for so many clients, and the figure names them."""

from __future__ import annotations

import pytest

from benchmarks.recipes import Length, Reached, RecipeRun, known_recipes, means_of, recipe_of
from benchmarks.recipes_figure import draw
from farm_client.sdk.recipe_files import read_recipe
from protocol.recipe import Mode


@pytest.mark.parametrize("name", known_recipes())
def test_each_recipe_can_be_trained_by_eight_as_it_comes(name):
    recipe = recipe_of(name, Length())
    assert (recipe.min_clients, recipe.epochs) == (8, 15)
    given = read_recipe(name)
    assert given.keys() <= recipe.model_fields_set
    assert ("mode" in given) == ("round_samples" in recipe.model_fields_set)


def test_a_round_is_eight_steps_of_each_client_or_one_gradient():
    assert recipe_of("fedavg", Length()).round_samples == 8 * 8 * 8
    assert recipe_of("gradients", Length()).round_samples == 8 * 8
    assert recipe_of("gradients", Length()).mode is Mode.GRADIENTS


def test_a_seed_is_the_recipes_own():
    assert [recipe_of("fedavg", Length(), seed).seed for seed in (0, 3)] == [0, 3]


def test_recipes_for_rows_in_order_are_left_out():
    names = known_recipes()
    assert "sequential" not in names
    assert {"fedprox", "scaffold", "fedadam", "fedbuff", "decoupled", "private"} < set(names)


def run_of(name: str, seed: int, accuracy: float, plain_accuracy: float) -> RecipeRun:
    curve = [Reached(64, 1000, 2.0, 0.1), Reached(128, 2000 + seed, 0.5 + seed, accuracy)]
    return RecipeRun(
        benchmark="recipes",
        recipe=name,
        seed=seed,
        mode="weights",
        clients=8,
        samples=128,
        rounds=2,
        accuracy=accuracy,
        plain_accuracy=plain_accuracy,
        loss=0.5 + seed,
        plain_loss=0.4,
        bytes=2000 + seed,
        curve=curve,
    )


def test_a_recipe_is_the_mean_of_its_seeds_beside_the_plain_loop_of_the_same():
    runs = [run_of("one", 0, 0.90, 0.97), run_of("two", 0, 0.5, 0.97), run_of("one", 2, 0.98, 0.99)]
    one, two = means_of(runs)
    assert (one.recipe, one.seeds, two.recipe, two.seeds) == ("one", 2, "two", 1)
    assert (one.accuracy, one.plain_accuracy) == (pytest.approx(0.94), pytest.approx(0.98))
    assert (one.accuracy_low, one.accuracy_high) == (0.90, 0.98)
    assert one.points_below == pytest.approx(4)
    assert (one.loss, one.bytes) == (1.5, 2001)


def test_the_figure_names_each_recipe_once_and_is_the_same_each_time(tmp_path):
    first = [run_of("one", 0, 0.9, 0.95), run_of("two", 0, 0.9, 0.95)]
    draw(first, tmp_path / "a.svg")
    draw([*first, run_of("one", 1, 0.2, 0.3)], tmp_path / "deep" / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "deep" / "b.svg").read_text()
    assert text.count(">one<") == 1
    assert ">two<" in text
