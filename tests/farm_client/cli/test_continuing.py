"""`farm continue`: what is typed becomes a submission, and what is said of it."""

from __future__ import annotations

import pytest

from farm_client.executor.rehearsal_records import RehearsalReport
from tests.farm_client.cli.fake_farm import make_checkpoint


@pytest.fixture(autouse=True)
def _kept(fake):
    fake.checkpoints = [make_checkpoint(12, newest=True)]


def test_it_submits_a_task_and_says_from_where(farm, fake):
    outcome = farm("continue", "digits", "--rounds", "+8", "--batch-samples", "16", "--update-codec", "int8", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    (spec,) = fake.submitted
    assert (spec.continues.round, spec.recipe.rounds, spec.recipe.batch_samples) == (12, 20, 16)
    assert spec.recipe.update_codec.name == "int8"
    assert outcome.envelope("submitted")["notes"] == ["continues digits, abcd2345@12"]


def test_passes_over_the_data_take_the_place_of_rounds(farm, fake):
    assert farm("continue", "digits", "--epochs", "9").exit_code == 0
    assert (fake.submitted[0].recipe.rounds, fake.submitted[0].recipe.epochs) == (None, 9.0)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("digits", "--rounds", "+0"), 1, "write +20 for 20 more rounds"),
        (("digits", "--round", "11", "--rounds", "+1"), 1, "kept are: 12"),
        (("nobody", "--rounds", "+1"), 1, "there is no task 'nobody'"),
        (("digits", "--best", "--rounds", "+1"), 1, "without --keep-best"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(farm, fake, arguments, exit_code, said):
    outcome = farm("continue", *arguments)
    assert said in outcome.stderr
    assert outcome.exit_code == exit_code, outcome.stderr
    assert fake.submitted == []


@pytest.mark.parametrize("typed", [(), ("--rounds", "+8"), ("--epochs", "4")])
def test_a_file_says_what_changes_and_what_is_typed_wins(farm, fake, tmp_path, typed):
    (tmp_path / "more.toml").write_text(
        'recipe = { rounds = "+2", batch_samples = 8, schedule = "cosine", mode = "weights" }\nconfig = {}\n'
    )
    outcome = farm("continue", "digits", "--config", str(tmp_path / "more.toml"), "--batch-samples", "16", *typed)
    assert outcome.exit_code == 0, outcome.stderr
    recipe = fake.submitted[0].recipe
    assert (recipe.batch_samples, recipe.schedule.name) == (16, "cosine")
    assert (recipe.rounds, recipe.epochs) == {(): (14, None), ("--rounds", "+8"): (20, None)}.get(typed, (None, 4.0))


def test_values_of_the_config_are_set_before_anything_is_built(farm, fake, tmp_path, monkeypatch):
    monkeypatch.setattr("farm_client.sdk.continuing.build_again", lambda *_, **__: RehearsalReport(has_scheduler=True))
    (tmp_path / "more.toml").write_text("[config]\nlr = 0.5\nwidth = 4\n")
    outcome = farm("continue", "digits", "--config", str(tmp_path / "more.toml"), "--set", "width=8", "--set", "a.b=x")
    assert outcome.exit_code == 0, outcome.stderr
    (spec,) = fake.submitted
    assert spec.config == {"lr": 0.5, "width": 8, "a": {"b": "x"}}
    assert spec.has_scheduler


def test_a_file_of_other_things_is_refused(farm, fake, tmp_path):
    (tmp_path / "task.toml").write_text("[task]\nname = 'x'\n[recipe]\nrounds = 3\n")
    outcome = farm("continue", "digits", "--config", str(tmp_path / "task.toml"))
    assert "[task] stays as it was submitted" in outcome.stderr
    assert (outcome.exit_code, fake.submitted) == (1, [])
