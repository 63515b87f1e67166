"""`farm recipes`: the list, one recipe's file, and a copy of it to change."""

from __future__ import annotations

import json

import numpy as np
import pytest

from farm_client.sdk.recipe_files import find_preset, presets
from protocol.recipe import InnerState
from protocol.tasks import TaskSpec


def test_each_recipe_has_a_line(farm):
    told = farm("recipes")
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [preset.name for preset in presets()]
    assert find_preset("diloco").when in told.stdout
    assert farm("recipes", "--json").envelope("recipes")["recipes"][0] == {
        "name": "default",
        "when": find_preset("default").when,
    }


def test_a_recipe_is_shown_as_it_stands_and_with_its_fields(farm):
    assert farm("recipes", "show", "diloco").stdout == find_preset("diloco").text
    shown = farm("recipes", "show", "diloco", "--json").envelope("recipe")
    assert (shown["text"], shown["recipe"]["inner_state"]) == (find_preset("diloco").text, "kept")


def test_a_saved_recipe_is_submitted(farm, fake, tmp_path):
    mine = tmp_path / "mine.toml"
    saved = farm("recipes", "save", "fedavg", str(mine), "--json")
    assert saved.envelope("recipe")["path"] == str(mine)
    assert mine.read_text() == find_preset("fedavg").text
    mine.write_text(mine.read_text().replace('"carried"', '"kept"'))
    again = farm("recipes", "save", "fedavg", str(mine))
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "def build_model(config):\n    return torch.nn.Linear(2, 1)\n"
        "def loss(model, batch):\n    return model(batch['x']).square().mean()\n"
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((64, 2), dtype=np.float32))
    arguments = ("submit", str(tmp_path / "train.py"), "--data", str(tmp_path / "data.npz"), "--recipe", str(mine))
    assert farm(*arguments, "--json").exit_code == 0
    spec = TaskSpec.model_validate_json(fake.requests[-1].content)
    assert spec.recipe.inner_state is InnerState.KEPT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show",), "say which"),
        (("save",), "say which"),
        (("save", "diloco"), "writes a file"),
        (("show", "diloco", "mine.toml"), "takes a name"),
        (("keep", "diloco"), "'keep' is not one of"),
    ],
)
def test_wrong_usage_is_told(farm, arguments, said):
    told = farm("recipes", *arguments)
    assert (told.exit_code, said in told.stderr) == (2, True)


def test_an_unknown_name_names_the_nearest(farm):
    told = farm("recipes", "show", "fedavgg", "--json")
    assert told.exit_code == 1
    assert "'fedavg'" in json.loads(told.stdout)["data"]["message"]
