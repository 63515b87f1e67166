"""Recipes by name and by file: each that comes with the farm is valid, and what is said beside it wins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from farm_client.cli.submit_options import SubmitOptions, describe_task
from farm_client.sdk.recipe_files import WHEN, Preset, find_preset, presets, read_recipe
from farm_client.sdk.task_file import LASTING, Given, merge_settings
from protocol.aggregates import AggregateName
from protocol.compression import CodecName
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask, NotFound
from protocol.recipe import DataOrder, InnerState, Mode, Recipe

PRESETS = presets()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_each_recipe_says_when_to_choose_it_and_can_be_submitted_as_it_is(preset: Preset):
    assert preset.text.startswith(WHEN)
    assert 20 <= len(preset.when) <= 120
    assert max(map(len, preset.text.splitlines())) <= 120
    assert tomllib.loads(preset.text).keys() == {"recipe"}
    described = merge_settings(None, Given(recipe_source=preset.name))
    assert contradiction(described.recipe) is None
    assert preset.fields.keys() <= described.recipe.model_fields_set


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_line_that_is_commented_out_may_be_taken_in(preset: Preset):
    taken_in = re.sub(r"^# (\w+ = )", r"\1", preset.text, flags=re.MULTILINE)
    fields = tomllib.loads(taken_in)["recipe"]
    assert fields.keys() > preset.fields.keys() or taken_in == preset.text
    assert contradiction(merge_settings(None, Given(recipe=fields)).recipe) is None


def test_the_default_comes_first_and_the_issues_names_are_there():
    names = [preset.name for preset in PRESETS]
    assert names[0] == "default"
    assert names[1:] == sorted(names[1:])
    assert {"diloco", "fedavg", "gradients", "lora", "robust", "sequential", "slow-link"} <= set(names)
    assert {"decoupled", "fedadam", "fedbuff", "fedprox", "private", "scaffold", "secure", "streaming"} <= set(names)


def test_recipes_are_what_their_names_say():
    of = {preset.name: merge_settings(None, Given(recipe_source=preset.name)).recipe for preset in PRESETS}
    assert of["default"].model_fields_set <= {"rounds", "epochs"}
    assert of["gradients"].mode is Mode.GRADIENTS
    assert (of["fedavg"].mode, of["fedavg"].inner_state) == (Mode.WEIGHTS, InnerState.CARRIED)
    assert of["robust"].inner_state is InnerState.FRESH  # a mean of states is anybody's to spoil
    assert of["diloco"].outer.options == {"lr": 0.9, "momentum": 0.5, "nesterov": True}
    assert (of["slow-link"].update_codec.name, of["slow-link"].pipeline) == (CodecName.INT8, True)
    assert of["robust"].aggregate is AggregateName.TRIMMED_MEAN
    assert of["sequential"].order is DataOrder.SEQUENTIAL
    assert (of["fedbuff"].buffer, of["fedbuff"].max_staleness) == (4, 16)
    assert (of["decoupled"].quorum_clients, of["decoupled"].grace) == (3, 0.5)
    assert (of["fedprox"].proximal_mu, of["scaffold"].scaffold_clients, of["streaming"].fragments) == (0.01, 8, 4)
    assert (of["fedadam"].outer.name, of["private"].dp_clip) == ("fedadam", 1.0)
    assert (of["secure"].secure_aggregation, of["secure"].min_clients) == (True, 3)


def test_a_typing_error_names_the_nearest():
    with pytest.raises(NotFound, match="did you mean 'diloco'"):
        find_preset("dilco")
    with pytest.raises(NotFound, match="there are default, decoupled"):
        read_recipe("zzzz")


def test_options_win_over_a_recipe_and_a_recipe_over_the_settings_files_way_of_training(tmp_path):
    (tmp_path / "task.toml").write_text(
        '[recipe]\nmode = "gradients"\nround_samples = 512\nbatch_samples = 8\nepochs = 3\nclip_norm = 2.0\n'
    )
    options = SubmitOptions(
        file=tmp_path,
        recipe="diloco",
        max_staleness=2,
        set_values=["recipe.outer.options.lr=0.5", "recipe.quorum=0.75", "lr=1"],
    )
    described = describe_task(options)
    recipe = described.recipe
    assert (recipe.mode, recipe.inner_state, recipe.max_staleness, recipe.quorum) == ("weights", "kept", 2, 0.75)
    assert recipe.outer.options == {"lr": 0.5, "momentum": 0.5, "nesterov": True}
    assert (recipe.batch_samples, recipe.epochs, recipe.rounds, recipe.clip_norm) == (8, 3, None, 2.0)
    assert "round_samples" not in recipe.model_fields_set  # 512 was gradients mode's
    assert described.config == {"lr": 1}


def test_what_lasts_are_fields_of_a_recipe():
    assert LASTING - Recipe.model_fields.keys() == set()


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, (7, None)),
        ({"rounds": 3}, (3, None)),
        ({"epochs": 2.0}, (None, 2.0)),
        ({"set_values": ["recipe.epochs=4"]}, (None, 4.0)),
    ],
)
def test_when_to_stop_is_one_decision_also_in_a_recipes_file(tmp_path, options, ends):
    (tmp_path / "task.toml").write_text("[recipe]\nepochs = 3\n")
    (tmp_path / "mine.toml").write_text("[recipe]\nrounds = 7\n")
    recipe = describe_task(SubmitOptions(file=tmp_path, recipe=str(tmp_path / "mine.toml"), **options)).recipe
    assert (recipe.rounds, recipe.epochs) == ends


def test_a_file_may_be_called_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("[recipe]\nrounds = 7\n")
    Path("diloco").write_text("[recipe]\nrounds = 8\n")
    assert read_recipe("mine") == {"rounds": 7}
    assert read_recipe("diloco")["mode"] == "weights"
    assert read_recipe("./diloco") == read_recipe(Path("diloco")) == {"rounds": 8}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[recipe", "is not TOML"),
        (b"\xff\xfe\xff", "is not TOML"),
        (b"[recipe]\n[config]\nlr = 1\n", "has 'config': a recipe's file has one table"),
        (b"recipe = 3\n", "recipe is 3: write a table"),
    ],
)
def test_what_is_no_recipes_file_is_refused_with_its_name(tmp_path, text, said):
    (tmp_path / "mine.toml").write_bytes(text)
    with pytest.raises(InvalidTask, match="mine.toml.* " + said):
        read_recipe(str(tmp_path / "mine.toml"))


def test_what_cannot_be_read_is_told_apart(tmp_path):
    with pytest.raises(NotFound, match=r"there is no .*none\.toml"):
        read_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(InvalidTask, match="cannot be read"):
        read_recipe(tmp_path)


def test_a_misspelt_field_of_a_recipes_file_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text('[recipe]\nmdoe = "weights"\n')
    with pytest.raises(InvalidTask, match="there is no 'mdoe'"):
        describe_task(SubmitOptions(file=tmp_path, recipe=str(tmp_path / "mine.toml")))


def test_the_page_of_recipes_lists_them_all():
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page.partition("## Beside each other")[0]
    assert re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.MULTILINE) == [(p.name, p.when) for p in PRESETS]
