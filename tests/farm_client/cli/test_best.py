"""The best checkpoint: `farm pull --best`, and what `farm run --keep-best` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from farm_client.cli.local_training import wanted_round
from farm_client.cli.output import Output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from protocol.digests import digest_bytes
from protocol.recipe import Recipe
from protocol.tensors import weights_metadata
from tests.farm_client.cli.fake_farm import ADDRESS, make_checkpoint

KEPT = [
    make_checkpoint(1, metrics={"loss": 1.265}),
    make_checkpoint(5, metrics={"loss": 3.1}),
    make_checkpoint(6, metrics={"loss": 4.104}, newest=True),
]


@pytest.fixture(autouse=True)
def _model(fake):
    data = save({"a": torch.ones(2)}, metadata=weights_metadata({}, {}))
    fake.model_digest = digest_bytes(data)
    fake.blobs[fake.model_digest] = data
    fake.checkpoints = KEPT


def test_pull_best_fetches_the_best_by_the_tasks_own_rule(farm, fake, tmp_path: Path) -> None:
    fake.recipe = Recipe(rounds=6, keep_best="min:loss")
    model = tmp_path / "m.safetensors"
    outcome = farm("pull", "digits", "--best", "-o", str(model), "--json")
    assert outcome.envelope("model")["round"] == 1
    assert list(load_file(model)) == ["a"]


@pytest.mark.parametrize(
    ("recipe", "options", "sentence"),
    [
        (Recipe(rounds=6), [], "was submitted without --keep-best"),
        (Recipe(rounds=6, keep_best="max:acuracy"), [], "max:acuracy was not measured"),
        (Recipe(rounds=6, keep_best="min:loss"), ["--round", "5"], "give --best or --round, not both"),
    ],
)
def test_a_best_that_is_not_there_is_told(farm, fake, tmp_path: Path, recipe, options, sentence) -> None:
    fake.recipe = recipe
    outcome = farm("pull", "digits", "--best", *options, "-o", str(tmp_path / "m.safetensors"))
    assert outcome.exit_code
    assert sentence in outcome.stderr


@pytest.mark.parametrize(
    ("rule", "wanted", "told"),
    [
        ("min:loss", 1, "the best by min:loss is the model after 1 round"),
        ("max:loss", 6, "the best by max:loss is the model after 6 rounds"),
        ("max:acuracy", None, "max:acuracy was never measured"),
        (None, None, ""),
    ],
)
def test_run_writes_the_best_model_that_the_recipe_keeps(fake, capsys, rule, wanted, told) -> None:
    with FarmApi(parse_address(ADDRESS, "test"), fake.transport()) as api:
        assert wanted_round(api, rule, "abcd2345", Output(as_json=False)) == wanted
    assert told in capsys.readouterr().err
