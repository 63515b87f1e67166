"""The benchmark of recipes: each is trained as it comes, for so many clients, and the figure names them."""

from __future__ import annotations

import pytest

from benchmarks.recipes import Length, Reached, RecipeRun, known_recipes, recipe_of
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


def test_recipes_for_rows_in_order_and_for_many_clients_are_left_out():
    assert {"sequential", "private"}.isdisjoint(known_recipes())


def test_the_figure_names_each_recipe_and_is_the_same_each_time(tmp_path):
    curve = [Reached(64, 1000, 2.0, 0.1), Reached(128, 2000, 0.5, 0.9)]
    runs = [
        RecipeRun("recipes", name, "weights", 8, 128, 2, 0.9, 0.95, 0.5, 0.4, 2000, curve) for name in ("one", "two")
    ]
    draw(runs, tmp_path / "a.svg")
    draw(runs, tmp_path / "deep" / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "deep" / "b.svg").read_text()
    assert ">one<" in text
    assert ">two<" in text
