"""From files to a task: what is uploaded, what the recipe becomes, and what is refused before anything is sent."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.numerics.schedule import value_at
from farm_client.data.columns import DataError
from farm_client.executor.rehearsal import rehearse
from farm_client.executor.rehearsal_records import RehearsalReport, RehearsalRequest
from farm_client.sdk import check
from farm_client.sdk.check import CheckFailed, check_task
from farm_client.sdk.default_mode import LOOPBACK, LinkEstimate
from farm_client.sdk.submission import Prepared, Submission, complete_recipe, length_settings, prepare
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask
from protocol.recipe import InnerState, Mode, OuterOptimizer, ParameterGroup, Recipe
from protocol.task_length import task_length
from protocol.tasks import Dataset, Shard, Split, TaskSpec
from protocol.tensors import parse_layout

TASK = """
    import torch
    from torch import nn

    print("hello from the task")

    def build_model(config):
        return nn.Linear(3, config.get("classes", 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


def write_task(folder: Path, source: str = TASK) -> Path:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(source))
    return path


def write_npz(folder: Path, rows: int = 100) -> Path:
    path = folder / "data.npz"
    np.savez(path, x=np.ones((rows, 3), np.float32), y=np.arange(rows) % 2)
    return path


def prepared(folder: Path, source: str = TASK, recipe: Recipe | None = None, **options: Any) -> Prepared:
    work = folder / "work"
    work.mkdir()
    options = {"data": (write_npz(folder),), "holdout": 0.2, **options}
    return prepare(Submission(write_task(folder, source), recipe or Recipe(rounds=3), **options), work)


def test_everything_the_task_names_is_there_to_upload(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    work = tmp_path / "work"
    work.mkdir()
    submission = Submission(
        write_task(tmp_path), Recipe(rounds=3), data=(write_npz(tmp_path),), holdout=0.2, config={"classes": 3}
    )
    ready = prepare(submission, work, lambda *step: told.append(step))
    spec = TaskSpec.model_validate_json(ready.spec.model_dump_json())
    assert spec == ready.spec
    named = {spec.code.digest, spec.initial_weights.digest, *(s.blob.digest for s in spec.dataset.shards if s.blob)}
    assert named == set(ready.blobs)
    for digest, content in ready.blobs.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert digest_bytes(data) == digest
    weights = ready.blobs[spec.initial_weights.digest]
    assert isinstance(weights, Path)
    assert [t.shape for t in parse_layout(weights.read_bytes()).tensors] == [(3,), (3, 3)]
    assert (spec.name, spec.entry, spec.config) == ("train", "train.py", {"classes": 3})
    assert spec.dataset.samples(Split.TRAIN) == 80
    assert spec.dataset.samples(Split.HOLDOUT) == 20
    assert spec.footprint.weights_bytes == spec.initial_weights.size_bytes
    assert spec.footprint.peak_ram_bytes > 50 << 20
    assert ready.report.loss is not None
    assert told[0] == ("checking", 0, 1)
    assert told[-1] == ("sharding", 100, 100)


def test_gradients_mode_takes_the_researchers_optimizer(in_process: None, tmp_path: Path) -> None:
    source = (
        TASK
        + """
    def build_optimizer(model, config):
        groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=torch.tensor(0.5), betas=(0.8, 0.9), weight_decay=0.1)
    """
    )
    spec = prepared(tmp_path, source, Recipe(rounds=3, mode=Mode.GRADIENTS, batch_samples=4)).spec
    assert spec.recipe.outer == OuterOptimizer(
        name="adamw",
        options={
            "lr": 0.5,
            "betas": (0.8, 0.9),
            "eps": 1e-8,
            "weight_decay": 0.1,
            "amsgrad": False,
            "maximize": False,
        },
        groups=(ParameterGroup(names=("weight",)), ParameterGroup(names=("bias",), options={"weight_decay": 0.0})),
    )
    assert spec.recipe.round_samples == 32


def test_a_named_schedule_goes_over_the_steps_of_the_task(in_process: None, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"rounds": 9, "mode": "gradients", "batch_samples": 4, "schedule": {"name": "linear"}}
    )
    spec = prepared(tmp_path, TASK, recipe).spec
    rates = spec.recipe.outer.schedules["lr"]
    assert [value_at(rates, version) for version in range(9)] == pytest.approx([1e-3 * (1 - t / 9) for t in range(9)])
    assert spec.needs == ("named_schedule", "schedules")


def test_a_named_schedule_beside_an_optimizer_of_the_recipe_is_refused(in_process: None, tmp_path: Path) -> None:
    fields = {"rounds": 9, "mode": "gradients", "schedule": {"name": "linear"}, "outer": {"name": "sgd"}}
    with pytest.raises(InvalidTask, match="the recipe has an outer one: leave out one of them"):
        prepared(tmp_path, TASK, Recipe.model_validate(fields))


def test_a_warm_up_that_is_longer_than_the_task_is_refused(in_process: None, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"rounds": 2, "mode": "gradients", "schedule": {"warmup": 3}})
    with pytest.raises(InvalidTask, match="warmup is 3 steps, and the task has 2"):
        prepared(tmp_path, TASK, recipe)


def test_a_data_set_made_by_code(in_process: None, tmp_path: Path) -> None:
    source = (
        TASK
        + """
    def make_dataset(config):
        return [{"x": torch.ones(3), "y": i % 2} for i in range(100)]
    """
    )
    ready = prepared(tmp_path, source, data=())
    dataset = ready.spec.dataset
    assert dataset.kind == "code"
    assert len(ready.blobs) == 2
    assert [s.start for s in dataset.shards] == [
        sum(t.samples for t in dataset.shards[: s.index]) for s in dataset.shards
    ]
    assert dataset.samples(Split.TRAIN) + dataset.samples(Split.HOLDOUT) == 100


def test_load_shard_with_a_number_of_samples(in_process: None, tmp_path: Path) -> None:
    source = (
        TASK
        + """
    def load_shard(shard):
        return {"x": torch.ones(shard.samples, 3), "y": torch.zeros(shard.samples, dtype=torch.int64)}
    """
    )
    dataset = prepared(tmp_path, source, data=(), samples=50).spec.dataset
    assert dataset.samples(Split.TRAIN) == 40


def test_without_a_check_only_the_model_is_built(in_process: None, tmp_path: Path) -> None:
    ready = prepared(tmp_path, TASK.replace('batch["x"]', 'batch["wrong"]'), check=False)
    assert ready.report.loss is None
    assert ready.spec.initial_weights.digest in ready.blobs


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("def build_model(config)\n", {}, r"^train\.py:1: SyntaxError"),
        ("x = 1\n", {}, r"train\.py has no build_model\(config\)"),
        (TASK.replace("Linear(3", "Linear(4"), {}, r"^train\.py:\d+, in loss: RuntimeError: .*x: float32 \[32, 3\]"),
        (TASK.replace("(model(", "(0 * torch.inf * model("), {}, "the loss is nan at step 1"),
        (TASK, {"data": ()}, "there is no data: give files with --data"),
        (TASK + "    def load_shard(shard):\n        return {}\n", {"data": ()}, "write samples = N into"),
        (TASK + "    def make_dataset(config):\n        return []\n", {"data": ()}, "the data set is empty"),
        (
            TASK
            + "    def build_optimizer(model, config):\n        return torch.optim.SparseAdam(model.parameters())\n",
            {"recipe": Recipe(rounds=1, mode=Mode.GRADIENTS)},
            "RMSprop and Rprop, not SparseAdam: return one of those from build_optimizer, or use --mode weights",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    in_process: None, tmp_path: Path, source: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckFailed, match=sentence) as failed:
        prepared(tmp_path, source, **options)
    assert "\n" not in failed.value.message
    assert failed.value.code == "invalid_task"


def test_a_model_that_the_codec_cannot_take_is_found_before_anything_is_sent(in_process: None, tmp_path: Path) -> None:
    named_like_a_part = TASK.replace(
        'return nn.Linear(3, config.get("classes", 2))',
        'return nn.ParameterDict({"w": torch.ones(3, 200), "w/q": torch.ones(1)})',
    )
    recipe = Recipe(rounds=3, update_codec=CodecSpec(name=CodecName.INT8))
    with pytest.raises(CheckFailed, match="'w/q' has the name of an encoded part: rename it"):
        prepared(tmp_path, named_like_a_part, recipe)


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        ("os._exit(7)", "ended its process while it was tried: exit code 7"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL; this machine is short of memory"),
    ],
)
def test_a_process_that_dies_is_explained(tmp_path: Path, ending: str, sentence: str) -> None:
    with pytest.raises(CheckFailed, match=sentence):
        prepared(tmp_path, TASK + f"    import os\n    {ending}\n")


def test_a_failed_check_carries_traceback_and_output(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed) as failed:
        check_task(write_task(tmp_path, TASK.replace("Linear(3", "Linear(4")), {}, [write_npz(tmp_path)])
    assert "in loss" in (failed.value.trace or "")
    assert failed.value.output == "hello from the task"


def test_check_task_measures(tmp_path: Path) -> None:
    report = check_task(write_task(tmp_path), {}, [write_npz(tmp_path)], batch_samples=4)
    assert report.weights_bytes > 0
    assert report.evaluation["loss"] > 0
    assert report.peak_rss_bytes > 50 << 20


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"day": dt.date(2020, 1, 1)}, "the config cannot be sent"),
        ({"lr": float("nan")}, "the config cannot be sent"),
        ({"table": "x" * 300_000}, "put large values into a file"),
    ],
)
def test_a_config_that_cannot_travel_is_refused(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidTask, match=sentence):
        prepare(Submission(write_task(tmp_path), Recipe(rounds=1), config=config), tmp_path)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        prepare(Submission(write_task(tmp_path), Recipe(rounds=1), data=(write_npz(tmp_path, 0),)), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "options", "sentence"),
    [
        (Recipe(rounds=1, keep_best="max:acuracy"), {}, "measures no 'acuracy': did you mean 'accuracy'"),
        (Recipe(rounds=1, keep_best="max:f1"), {}, "measures no 'f1': it measures accuracy, loss"),
        (Recipe(rounds=1, keep_best="max:accuracy"), {"holdout": 0.0}, "keep_best needs held-out samples"),
        (Recipe(rounds=1, min_clients=9, round_samples=8), {}, "a round of 8 samples cannot be shared by 9 clients"),
    ],
)
def test_what_can_never_be_met_is_refused(
    in_process: None, tmp_path: Path, recipe: Recipe, options: dict[str, Any], sentence: str
) -> None:
    source = TASK.replace("return nn.functional.cross_entropy", "loss = nn.functional.cross_entropy") + (
        '        return {"loss": loss, "accuracy": loss * 0}\n'
    )
    with pytest.raises(InvalidTask, match=sentence):
        prepared(tmp_path, source, recipe, **options)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rehearse in this process: torch takes seconds to import, and some mistakes need no process to end."""
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))


def dataset(train: int) -> Dataset:
    return Dataset(kind="code", shards=(Shard(index=0, samples=train),))


@pytest.mark.parametrize(
    ("recipe", "train", "round_samples", "evaluate_every"),
    [
        (Recipe(rounds=1), 1000, 1000, 1),
        (Recipe(rounds=1), 1_000_000, 65_536, 16),
        (Recipe(rounds=1, mode=Mode.GRADIENTS), 1000, 256, 4),
        (Recipe(rounds=1, mode=Mode.GRADIENTS), 10, 10, 1),
        (Recipe(rounds=1, round_samples=50, evaluate_every=3), 1000, 50, 3),
        (Recipe(rounds=1, round_samples=50), 1000, 50, 20),
    ],
)
def test_recipe_defaults(recipe: Recipe, train: int, round_samples: int, evaluate_every: int) -> None:
    complete = complete_recipe(recipe, dataset(train), RehearsalReport())
    assert (complete.round_samples, complete.evaluate_every) == (round_samples, evaluate_every)


@given(
    mode=st.sampled_from(list(Mode)),
    train=st.integers(2, 200_000),
    round_samples=st.none() | st.integers(1, 500),
    rounds=st.none() | st.integers(1, 50),
    epochs=st.none() | st.floats(0.05, 5.0),
)
def test_a_trial_takes_the_task_for_as_long_as_the_farm_will(
    mode: Mode, train: int, round_samples: int | None, rounds: int | None, epochs: float | None
) -> None:
    assume(rounds is not None or epochs is not None)
    said = {"mode": mode, "rounds": rounds, "epochs": epochs, "batch_samples": 8, "round_samples": round_samples}
    recipe = Recipe(**{name: value for name, value in said.items() if value is not None})
    tried = RehearsalRequest.model_construct(**length_settings(recipe), batch_samples=8, holdout=0.0)
    complete = complete_recipe(recipe, dataset(train), RehearsalReport())
    assert tried.length(mode, train) == task_length(complete, mode, train)


def test_the_researchers_side_needs_no_torch_in_its_own_process() -> None:
    code = "import farm_client.sdk.submission, sys, json; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) is False


UNPACKS = TASK.replace(
    'nn.functional.cross_entropy(model(batch["x"]), batch["y"])',
    "nn.functional.cross_entropy(model(batch[0]), batch[1])",
)


@pytest.mark.parametrize("batch", ["tuple", "x,y", "x, y", ("x", "y")])
def test_the_columns_of_a_tuple_batch_are_written_into_the_recipe(
    in_process: None, tmp_path: Path, batch: str | tuple[str, ...]
) -> None:
    assert prepared(tmp_path, UNPACKS, batch=batch).spec.recipe.tuple_columns == ("x", "y")


def test_a_tuple_of_all_columns_needs_data_whose_columns_are_known(in_process: None, tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match="--batch tuple takes the columns of --data"):
        prepared(tmp_path, UNPACKS, batch="tuple", data=())


SLOW = LinkEstimate(1.0, 1.0, round_seconds=60.0)
HOOKED = """
    def build_optimizer(model, config):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: None)
        return optimizer
"""


@pytest.mark.parametrize(
    ("source", "link", "mode", "said"),
    [
        (TASK, LOOPBACK, Mode.GRADIENTS, "the plain loop's model"),
        (TASK + HOOKED, LOOPBACK, Mode.WEIGHTS, "without its hooks (<lambda>); one client trains at a time"),
        (TASK, SLOW, Mode.WEIGHTS, "an exchange of"),
    ],
)
def test_a_mode_that_is_left_open_is_chosen_and_said(
    tmp_path: Path, source: str, link: LinkEstimate, mode: Mode, said: str
) -> None:
    ready = prepared(tmp_path, source, Recipe(rounds=300), chosen_for=link)
    assert ready.choice is not None
    assert said in ready.choice.sentence
    assert ready.spec.recipe.mode is ready.report.mode is mode
    assert ready.spec.notes[0] == ready.choice.sentence
    assert ready.report.loss is not None
    assert (ready.spec.recipe.outer.options["lr"] == 1.0) is (mode is Mode.WEIGHTS)
    assert ready.spec.recipe.max_clients == (None if mode is Mode.GRADIENTS else 1)


def test_a_mode_that_was_said_stays(tmp_path: Path) -> None:
    ready = prepared(tmp_path, recipe=Recipe(rounds=3, mode=Mode.WEIGHTS), chosen_for=LOOPBACK)
    assert (ready.choice, ready.spec.recipe.mode) == (None, Mode.WEIGHTS)
    (note,) = ready.spec.notes
    assert "averages clients that train apart" in note


def test_code_that_fails_in_either_mode_is_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"parameters .* that are not in the model"):
        prepared(
            tmp_path,
            TASK + HOOKED.replace("model.parameters()", "[*model.parameters(), nn.Parameter(torch.ones(2))]"),
            chosen_for=LOOPBACK,
        )


RECURRENT = """
    import torch
    from torch import nn

    def build_model(config):
        return nn.Linear(3, 2)

    def initial_state(model, batch_size, config):
        return torch.zeros(batch_size, 2)

    def loss(model, batch, state):
        scores = model(batch["x"]) + state
        return nn.functional.cross_entropy(scores, batch["y"]), scores
"""


def in_order(**fields: Any) -> Recipe:
    return Recipe(**{"rounds": 3, "order": "sequential", "batch_samples": 8, **fields})


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            in_order(inner_state="carried", mode="weights", max_clients=1),
            "rows in order: 8 streams side by side; the state goes on from batch to batch, over rounds and clients, "
            "and begins anew with each epoch; 4 rows at the end left out, for streams of equal length",
        ),
        (
            in_order(mode="weights", min_clients=2, batch_samples=5),
            "rows in order: 5 streams side by side in each of 2 stretches of the data, one for each client of a round; "
            "their weights are averaged, which is not the plain loop; the state goes on from batch to batch, and "
            'begins anew with each round: inner_state = "carried" hands it on',
        ),
    ],
)
def test_a_line_says_what_of_rows_in_order_is_the_plain_loop(
    in_process: None, tmp_path: Path, recipe: Recipe, said: str
) -> None:
    ready = prepared(tmp_path, RECURRENT, recipe)
    assert ready.notes == ready.spec.notes == (said,)
    assert ready.spec.needs[-1] == "sequential_order"
    complete = ready.spec.recipe
    assert complete.round_samples == ready.spec.dataset.samples(Split.TRAIN) == 80
    assert all(shard.stride for shard in ready.spec.dataset.shards)


def test_rows_in_order_are_the_plain_loop_where_no_mode_is_named(in_process: None, tmp_path: Path) -> None:
    ready = prepared(tmp_path, RECURRENT, in_order(), chosen_for=LOOPBACK)
    recipe = ready.spec.recipe
    assert (recipe.mode, recipe.inner_state, recipe.max_clients) == (Mode.WEIGHTS, InnerState.CARRIED, 1)
    assert ready.choice is not None
    assert "the rows are read in order, one batch after the other; one client trains at a time" in ready.choice.sentence
    assert "over rounds and clients" in ready.spec.notes[1]


def test_rows_in_order_made_by_code_have_their_places(in_process: None, tmp_path: Path) -> None:
    made = (
        RECURRENT
        + """
    def make_dataset(config):
        return [{"x": torch.zeros(3), "y": i % 2} for i in range(50)]
"""
    )
    ready = prepared(tmp_path, made, in_order(mode="weights"), data=(), holdout=0.2)
    train, held = ready.spec.dataset.shards
    assert (train.start, train.stride, train.samples) == (0, 5, 40)
    assert (held.start, held.stride, held.samples) == (40, 1, 8)
    assert "2 rows at the end left out" in ready.notes[0]


def test_a_round_of_rows_in_order_is_whole_batches_of_each_client() -> None:
    recipe = in_order(mode="weights", batch_samples=7, min_clients=3)
    assert complete_recipe(recipe, dataset(70_014), RehearsalReport()).round_samples == 65_520
    assert complete_recipe(recipe, dataset(42), RehearsalReport()).round_samples == 42


def test_a_lock_travels_as_a_blob_by_which_the_environment_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"einops==0.8.1 --hash=sha256:{'a' * 64}\n")
    ready = prepared(tmp_path, environment=path)
    assert ready.spec.environment is not None
    assert ready.spec.environment.carried is None
    assert ready.blobs[ready.spec.environment.digest] == path.read_bytes()
    assert "task_environment" in ready.spec.needs


def test_a_lock_that_leaves_a_choice_open_is_told_before_the_code_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("einops>=0.8\n")
    with pytest.raises(InvalidTask, match="line 1: einops is not pinned"):
        prepared(tmp_path, "raise RuntimeError('it was tried')", environment=path)
