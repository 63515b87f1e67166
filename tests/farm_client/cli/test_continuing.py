"""`farm continue`: what is typed becomes a submission, and what is said of it."""

from __future__ import annotations

import pytest

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
