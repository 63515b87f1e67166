"""What is submitted: settings files, the command line over them, and the mistakes in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_client.cli.submit import describe_submission
from farm_client.cli.submit_options import SubmitOptions, describe_task
from protocol.aggregates import AggregateName
from protocol.compression import CodecName, CodecSpec
from protocol.errors import InvalidTask
from protocol.named_schedule import NamedSchedule, ScheduleName
from protocol.recipe import InnerState, Mode
from protocol.sandbox import Rung

FILE = """
[task]
name = "spirals"
data = "data.npz"
holdout = 0.25
[recipe]
epochs = 3
round_samples = 512
[recipe.outer]
name = "sgd"
options = { lr = 0.7, momentum = 0.9, nesterov = true }
[requirements]
ram_bytes = "2GiB"
[config]
lr = 0.1
layers = { width = 8 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.toml").write_text(FILE)
    (tmp_path / "train.py").write_text("")
    return tmp_path


def test_a_folder_brings_its_settings(folder):
    described = describe_task(SubmitOptions(file=folder))
    assert described.task.data == (folder / "data.npz",)
    assert described.recipe.epochs == 3
    assert described.recipe.rounds is None
    assert described.recipe.outer.options["momentum"] == 0.9
    assert described.requirements.ram_bytes == 2 * 2**30
    assert described.config == {"lr": 0.1, "layers": {"width": 8}}


def test_the_command_line_wins(folder):
    options = SubmitOptions(
        file=folder,
        data=[Path("other.npz")],
        set_values=["lr=0.5", "layers.width=16", "layers.kind=dense", "name='x'"],
        name="mine",
        rounds=7,
        mode=Mode.GRADIENTS,
        ram="512MB",
        tags=["lab"],
        modules=["torchvision", "gymnasium"],
        gpu=True,
    )
    described = describe_task(options)
    assert described.task.data == (Path("other.npz"),)
    assert described.task.name == "mine"
    assert (described.recipe.rounds, described.recipe.epochs) == (7, None)
    assert described.recipe.round_samples == 512
    assert described.recipe.mode is Mode.GRADIENTS
    assert described.config == {"lr": 0.5, "layers": {"width": 16, "kind": "dense"}, "name": "x"}
    assert described.requirements.ram_bytes == 512_000_000
    assert described.requirements.tags == ("lab",)
    assert described.requirements.gpu
    assert described.requirements.modules == ("torchvision", "gymnasium")


def test_a_sandbox_is_asked_for_by_its_rung(folder):
    assert describe_task(SubmitOptions(file=folder)).requirements.sandbox is None
    (folder / "task.toml").write_text("[requirements]\nsandbox = 'strict'")
    assert describe_task(SubmitOptions(file=folder)).requirements.sandbox is Rung.STRICT
    any_will_do = describe_task(SubmitOptions(file=folder, sandbox=Rung.NONE))
    assert any_will_do.requirements.sandbox is Rung.NONE, "the command line takes the file's demand back"


def test_a_file_brings_the_settings_beside_it(folder):
    described = describe_task(SubmitOptions(file=folder / "train.py"))
    assert described == describe_task(SubmitOptions(file=folder))
    assert described.config["layers"] == {"width": 8}


@pytest.mark.parametrize(("entry", "is_meant"), [("train.py", True), ("other.py", False)])
def test_settings_about_another_file_are_not_a_files_own(folder, entry, is_meant):
    (folder / "task.toml").write_text(f"[task]\nname = 'x'\nentry = '{entry}'")
    assert (describe_task(SubmitOptions(file=folder / "train.py")).task.name == "x") is is_meant


def test_epochs_on_the_command_line_replace_rounds_and_both_may_be_given(folder):
    (folder / "task.toml").unlink()
    file = folder / "train.py"
    assert describe_task(SubmitOptions(file=file)).recipe.rounds == 20
    only_epochs = describe_task(SubmitOptions(file=file, epochs=1.5)).recipe
    assert (only_epochs.rounds, only_epochs.epochs) == (None, 1.5)
    both = describe_task(SubmitOptions(file=file, epochs=1.5, rounds=3)).recipe
    assert (both.rounds, both.epochs) == (3, 1.5)


def test_recipe_fields_that_nobody_gave_are_left_to_the_submission(folder):
    (folder / "task.toml").unlink()
    given = describe_task(SubmitOptions(file=folder / "train.py", batch_samples=8)).recipe.model_fields_set
    assert "batch_samples" in given
    assert not given & {"round_samples", "evaluate_every", "outer"}


def test_checkpoints_and_late_work_by_file_and_by_option(folder):
    (folder / "task.toml").write_text(
        "[recipe]\nrounds = 3\nkeep_every = 10\nmax_staleness = 2\nkeep_best = 'min:loss'\nkeep_inner_optimizer = true"
    )
    options = SubmitOptions(file=folder, keep_best="max:accuracy", over_provision=0.5, row_bytes=64, samples=1000)
    described = describe_task(options)
    recipe = described.recipe
    assert (recipe.keep_every, recipe.max_staleness, recipe.over_provision) == (10, 2, 0.5)
    assert recipe.keep_best == "max:accuracy"
    assert recipe.inner_state is InnerState.KEPT
    assert (described.task.row_bytes, described.task.samples) == (64, 1000)


def test_a_codec_is_named_or_described(folder):
    (folder / "task.toml").write_text(
        """
        [recipe]
        rounds = 3
        update_codec = { name = "topk", density = 0.01 }
        weights_codec = "int8"
        max_staleness = 1
        """
    )
    recipe = describe_task(SubmitOptions(file=folder)).recipe
    assert recipe.update_codec == CodecSpec(name=CodecName.TOPK, density=0.01)
    assert recipe.weights_codec == CodecSpec(name=CodecName.INT8)
    assert not recipe.pipeline
    options = SubmitOptions(file=folder, update_codec=CodecName.INT4, weights_codec=CodecName.NONE, pipeline=True)
    recipe = describe_task(options).recipe
    assert recipe.update_codec == CodecSpec(name=CodecName.INT4)
    assert recipe.weights_codec == CodecSpec()
    assert recipe.pipeline


def test_the_aggregate_by_file_and_by_option(folder):
    (folder / "task.toml").write_text("[recipe]\nrounds = 3\nmin_clients = 3\naggregate = 'median'")
    recipe = describe_task(SubmitOptions(file=folder)).recipe
    assert (recipe.aggregate, recipe.trim_share) == ("median", 0.0)
    options = SubmitOptions(file=folder, aggregate=AggregateName.TRIMMED_MEAN, trim_share=0.2)
    recipe = describe_task(options).recipe
    assert (recipe.aggregate, recipe.trim_share) == ("trimmed_mean", 0.2)
    assert describe_task(SubmitOptions(file=folder, aggregate=AggregateName.MEAN)).recipe.aggregate == "mean"


def test_the_submission_says_who(folder):
    submission = describe_submission(SubmitOptions(file=folder, submit_token="once", no_check=True))
    assert "@" in submission.submitter
    assert submission.submit_token == "once"
    assert not submission.check
    assert submission.holdout == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 3", "put 'rounds' into a table"),
        ("[recipes]\nrounds = 3", "recipes"),
        ("[recipe]\nround = 3", "there is no 'round'; known are mode, rounds"),
        ("[recipe]\nrounds = 0", "recipe.rounds"),
        (
            "[recipe]\nrounds = 9\ndurable_every = 4",
            "there is no 'durable_every' any more: no round waits for the disk",
        ),
        ("[recipe]\nmode = 'gradients'\nquorum = 0.5\nrounds = 1", "gradients mode needs quorum 1"),
        ("[recipe]\nrounds = 1\nupdate_codec = 'int9'", "update_codec.name: Input should be 'none', 'fp16'"),
        ("[recipe]\nrounds = 1\nupdate_codec = 8", "recipe.update_codec"),
        ("[recipe]\nrounds = 1\nweights_codec = {name = 'topk', density = 2}", "weights_codec.density"),
        ("[recipe]\nrounds = 1\nupdate_codec = {name = 'topk', dense = 1}", "there is no 'update_codec.dense'"),
        ("[recipe]\nrounds = 1\nouter = {name = 'sgd', lr = 1}", "there is no 'outer.lr'; known are name, options"),
        ("[recipe]\nrounds = 1\npipeline = true", "max_staleness of 1 or more"),
        ("[task]\nholdout = 2", "task.holdout"),
        (
            "[recipe]\nrounds = 1\nkeep_best = 'accuracy'",
            "keep_best: 'accuracy' does not say which way is better",
        ),
        ("[recipe]\nrounds = 1\nmin_clients = 5\nmax_clients = 2", "min_clients is 5 and max_clients is 2"),
        ("[recipe]\nrounds = 1\ninit_min_clients = 5\nmax_clients = 2", "init_min_clients is 5 and max_clients is 2"),
        ("[recipe]\nrounds = 1\nkeep_best = 'min:loss'\nevaluate_every = 0", "keep_best needs evaluations"),
        ("[task]\ndata = 5", 'task.data is 5: write data = "FILE"'),
        ("[task]\ndata = [1]", "task.data is [1]"),
        ("[task]\ndata = {a = 1}", "task.data is {'a': 1}"),
        ("[task]\nname = 5", "task.name"),
        ("[task]\nentry = []", "task.entry"),
        ("[task]\nholdout = nan", "task.holdout"),
        ("[task]\npriority = 'high'", "task.priority"),
        ("[recipe]\nrounds = [1]", "recipe.rounds"),
        ("[recipe]\nepochs = inf", "recipe.epochs"),
        ("[recipe]\nrounds = 1\nouter = 5", "recipe.outer"),
        ("[requirements]\ntags = 5", "requirements.tags"),
        ("[requirements]\nram_bytes = []", "[] is no size"),
        (
            "[requirements]\nsandbox = 'castle'",
            "requirements.sandbox: Input should be 'strict', 'landlock'",
        ),
        ("recipe = 5", "put 'recipe' into a table"),
        ("a = " + "[" * 10_000, "is not TOML"),
        ("[recipe]\nrounds = 1\nmode = 'gradients'\nmax_staleness = 1", "are for weights mode"),
        (
            "[recipe]\nrounds = 1\naggregate = 'mode'",
            "aggregate: Input should be 'mean', 'median', 'trimmed_mean', 'krum'",
        ),
        ("[recipe]\nrounds = 1\naggregate = 'trimmed_mean'", "and a trim_share, such as 0.2, need each other"),
        ("[recipe]\nrounds = 1\naggregate = 'median'", "min_clients is 1: make it 3 or more"),
        ("[recipe]\nrounds = 1\nschedule = 'cosin'", "schedule.name: Input should be 'constant', 'linear'"),
        ("[recipe]\nrounds = 1\nschedule = { warm_up = 5 }", "there is no 'schedule.warm_up'"),
        ("[recipe]\nrounds = 1\nschedule = { name = 'cosine', gamma = 0.1 }", "gamma is for step"),
        ("[requirements]\nram_bytes = 'much'", "'much' is no size"),
        ("[task", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(folder, text, said):
    (folder / "task.toml").write_text(text)
    with pytest.raises(InvalidTask) as caught:
        describe_task(SubmitOptions(file=folder))
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("assignment", ["lr", "=3", "lr.x=3"])
def test_mistakes_in_set_are_named(folder, assignment):
    with pytest.raises(InvalidTask, match="--set"):
        describe_task(SubmitOptions(file=folder, set_values=[assignment]))


def test_a_missing_settings_file_is_named(folder):
    with pytest.raises(InvalidTask, match="there is no"):
        describe_task(SubmitOptions(file=folder, config=folder / "nosuch.toml"))


def test_a_base_is_relative_to_the_file_and_the_command_line_wins(folder):
    (folder / "task.toml").write_text('[task]\nbase = "model"\n')
    assert describe_task(SubmitOptions(file=folder)).submission(folder).base == folder / "model"
    assert describe_task(SubmitOptions(file=folder, base=Path("other"))).task.base == Path("other")


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"name": "cosine", "warmup": 0.1, "end": 0.5}),
        ({"warmup": 20}, {"name": "cosine", "warmup": 20, "end": 0.5}),
        ({"schedule": ScheduleName.LINEAR}, {"name": "linear"}),
        ({"schedule": ScheduleName.STEP, "warmup": 5}, {"name": "step", "warmup": 5}),
    ],
)
def test_a_schedule_on_the_command_line_takes_the_place_of_the_files_and_a_warm_up_changes_it(folder, options, fields):
    (folder / "task.toml").write_text('[recipe.schedule]\nname = "cosine"\nwarmup = 0.1\nend = 0.5\n')
    described = describe_task(SubmitOptions(file=folder, **options))
    assert described.recipe.schedule == NamedSchedule.model_validate(fields)


def test_a_warm_up_alone_is_a_schedule(folder):
    assert describe_task(SubmitOptions(file=folder)).recipe.schedule is None
    assert describe_task(SubmitOptions(file=folder, warmup=5)).recipe.schedule == NamedSchedule(warmup=5)
    (folder / "task.toml").write_text('[recipe]\nschedule = "one_cycle"\n')
    assert describe_task(SubmitOptions(file=folder)).recipe.schedule == NamedSchedule(name=ScheduleName.ONE_CYCLE)


def test_the_lock_is_named_beside_the_file_or_on_the_command_line(folder: Path) -> None:
    (folder / "task.toml").write_text('[task]\nenvironment = "uv.lock"\n')
    assert describe_task(SubmitOptions(file=folder)).submission(folder).environment == folder / "uv.lock"
    given = SubmitOptions(file=folder, requirements=Path("pylock.toml"))
    assert describe_task(given).submission(folder).environment == Path("pylock.toml")
