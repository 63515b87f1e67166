"""`farm init`, and submitting what it made and the examples (their code is tried on one batch for real)."""

from __future__ import annotations

import numpy as np
import pytest

from farm_client.cli.demo import example_folder
from farm_client.cli.scaffold import make_spirals
from protocol.errors import NotFound
from protocol.recipe import Mode
from protocol.tasks import TaskSpec
from protocol.tensors import parse_layout


def test_init_makes_a_task_that_can_be_submitted(farm, fake, tmp_path):
    folder = tmp_path / "mine"
    outcome = farm("init", str(folder), "--json")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data.npz", "task.toml", "train.py"]
    assert outcome.envelope("init")["directory"] == str(folder)
    outcome = farm("submit", str(folder), "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.envelope("submitted")["task"]["task_id"] == "abcd2345"
    spec = TaskSpec.model_validate_json(fake.requests[-1].content)
    assert spec.name == "spirals"
    assert {shard.blob.digest for shard in spec.dataset.shards} <= fake.blobs.keys()
    assert {spec.code.digest, spec.initial_weights.digest} <= fake.blobs.keys()
    assert "farm watch abcd2345" in outcome.stderr
    assert spec.recipe.mode is Mode.GRADIENTS  # it names none, so that its task gives the plain loop's model
    assert [note for note in spec.notes if "mode" in note] == [outcome.envelope("submitted")["mode_chosen"]]


def test_init_overwrites_nothing(farm, tmp_path):
    (tmp_path / "train.py").write_text("mine")
    outcome = farm("init", str(tmp_path))
    assert outcome.exit_code == 1
    assert (tmp_path / "train.py").read_text() == "mine"
    assert not (tmp_path / "data.npz").exists()


def test_the_spirals_are_two_and_repeatable():
    points, spirals = make_spirals(500)
    assert points.shape == (500, 2)
    assert set(spirals) == {0, 1}
    assert np.abs(points).max() < 1.5
    assert np.array_equal(points, make_spirals(500)[0])


def test_digits_can_be_submitted(farm, fake):
    outcome = farm("submit", str(example_folder("digits")), "--json", "--rounds", "2")
    assert outcome.exit_code == 0, outcome.stderr
    spec = TaskSpec.model_validate_json(fake.requests[-1].content)
    assert spec.recipe.rounds == 2
    assert sum(shard.samples for shard in spec.dataset.shards) == 1797
    assert (spec.recipe.mode, spec.notes) == (Mode.WEIGHTS, ())  # it says how it averages, and hears no note


def test_weights_mode_by_name_alone_is_told_what_it_costs(farm, fake, tmp_path):
    assert farm("init", str(tmp_path), "--json").exit_code == 0
    outcome = farm("submit", str(tmp_path), "--mode", "weights", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert "note: mode weights averages clients that train apart" in " ".join(outcome.stderr.split())
    (note,) = TaskSpec.model_validate_json(fake.requests[-1].content).notes
    assert note.startswith("mode weights averages clients")


@pytest.mark.parametrize(("name", "tied"), [("charlm", {"head.weight": "embed.weight"}), ("lightning", {})])
def test_the_other_examples_can_be_submitted(farm, fake, tmp_path, name, tied):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    data = ("--data", str(text)) if name == "charlm" else ()
    outcome = farm("submit", str(example_folder(name)), *data, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    spec = TaskSpec.model_validate_json(fake.requests[-1].content)
    assert parse_layout(fake.blobs[spec.initial_weights.digest]).tied == tied


def test_an_example_that_is_not_there():
    with pytest.raises(NotFound):
        example_folder("nosuch")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def build_model(config:\n", "train.py"),
        ("def loss(model, batch):\n    return 0\n", "build_model"),
    ],
)
def test_broken_code_is_refused_in_one_line_before_anything_is_sent(farm, fake, tmp_path, code, said):
    (tmp_path / "train.py").write_text(code)
    np.savez(tmp_path / "data.npz", x=np.zeros((8, 2), dtype=np.float32))
    outcome = farm("submit", str(tmp_path / "train.py"), "--data", str(tmp_path / "data.npz"))
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert said in line
    assert not any("PUT" in request for request in fake.sent())
