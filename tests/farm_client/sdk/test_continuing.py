"""What `farm continue` submits: a checkpoint's place, the recipe with its changes, and what to say of them."""

from __future__ import annotations

import datetime as dt
import io
import zipfile

import pytest
import torch

from coordinator.numerics.schedule import value_at
from farm_client import AsyncFarm, Farm
from farm_client.executor.layout import ModelTensors
from farm_client.executor.rehearsal import rehearse
from farm_client.sdk import check
from farm_client.sdk.api import FarmApi
from farm_client.sdk.check import CheckFailed
from farm_client.sdk.config import parse_address
from farm_client.sdk.continuing import Continuation, rounds_in_all
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask, NotFound
from protocol.named_schedule import NamedSchedule, ScheduleName
from protocol.recipe import DataOrder, InnerState, Mode, Recipe
from protocol.tasks import BaseFile, BlobRef, Dataset, Origin, Shard, Split, TaskSpec
from tests.farm_client.cli.fake_farm import A_BLOB, ADDRESS, FakeFarm, make_checkpoint, make_spec

CODE = """
import torch


def build_model(config):
    model = torch.nn.Linear(2, config.get("classes", 2))
    model.bias.requires_grad_(not config.get("frozen"))
    return model


def loss(model, batch):
    return model(batch["x"]).sum()


def build_optimizer(model, config):
    return torch.optim.Adam(model.parameters(), lr=config["lr"])


def build_scheduler(optimizer, config):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 20)
"""


def spec_of(**recipe: object) -> TaskSpec:
    """Return a submission with held-out samples."""
    shards = (*make_spec().dataset.shards, Shard(index=1, split=Split.HOLDOUT, samples=9, blob=A_BLOB))
    dataset = Dataset(kind="files", shards=shards)
    return make_spec(Recipe.model_validate(recipe)).model_copy(update={"dataset": dataset})


@pytest.fixture
def fake() -> FakeFarm:
    fake = FakeFarm()
    fake.spec = spec_of(rounds=20, keep_best="min:loss")
    fake.checkpoints = [
        make_checkpoint(5, digest="5" * 64, metrics={"loss": 0.2}, newest=False),
        make_checkpoint(20, digest="2" * 64, metrics={"loss": 0.3}, newest=True),
    ]
    return fake


@pytest.fixture
def farm(fake):
    with Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport(), tidy=True)) as farm:
        yield farm


def test_it_names_the_checkpoint_and_goes_on_counting(farm, fake):
    new = farm.task("digits").continue_("+10", name="more", submit_token="once")
    (spec,) = fake.submitted
    assert spec.continues == Origin(task_id="abcd2345", round=20)
    assert spec.initial_weights.digest == "2" * 64
    assert (spec.recipe.rounds, spec.name, spec.submit_token) == (30, "more", "once")
    assert spec.needs == ("continued_tasks",)
    assert (spec.code, spec.dataset) == (fake.spec.code, fake.spec.dataset)
    assert new.notes == spec.notes == ("continues digits, abcd2345@20",)
    assert not [line for line in fake.sent() if "/v1/blobs" in line], "nothing is uploaded"


@pytest.mark.parametrize(
    ("how", "round_", "rounds"), [({"best": True}, 5, 7), ({"round_number": 5}, 5, 7), ({}, 20, 22)]
)
def test_from_which_checkpoint(farm, fake, how, round_, rounds):
    farm.task("digits").continue_("+2", **how)
    (spec,) = fake.submitted
    assert spec.continues is not None
    assert (spec.continues.round, spec.recipe.rounds) == (round_, rounds)


@pytest.mark.parametrize(
    ("changes", "rounds", "epochs"),
    [({}, 20, None), ({"epochs": 4.0}, None, 4.0), ({"batch_samples": 8}, 20, None)],
)
def test_without_rounds_the_end_stays_unless_the_recipe_has_another(farm, fake, changes, rounds, epochs):
    farm.task("digits").continue_(round_number=5, recipe=changes)
    (spec,) = fake.submitted
    assert (spec.recipe.rounds, spec.recipe.epochs) == (rounds, epochs)


def test_what_is_not_there_is_told(farm, fake):
    task = farm.task("digits")
    with pytest.raises(NotFound, match=r"no checkpoint of round 6; kept are: 5, 20"):
        task.continue_("+1", round_number=6)
    with pytest.raises(InvalidTask, match="not both"):
        task.continue_("+1", round_number=5, best=True)
    fake.checkpoints = []
    with pytest.raises(NotFound, match="has no checkpoint"):
        task.continue_("+1")
    fake.tasks = []
    with pytest.raises(NotFound):
        farm.task("digits")
    assert fake.submitted == []


@pytest.mark.parametrize("said", ["+0", "0", "-3", "", "+", "twenty", "1.5", "+1e3", "9" * 40])
def test_rounds_that_are_none(said):
    with pytest.raises(InvalidTask, match="write \\+20"):
        rounds_in_all(said, 5)


def test_rounds_more_and_in_all():
    assert (rounds_in_all("+20", 5), rounds_in_all("60", 5), rounds_in_all(8, 5)) == (25, 60, 8)
    with pytest.raises(InvalidTask, match=r"5 rounds are trained before: write \+5"):
        rounds_in_all("5", 5)


def test_a_target_that_is_reached_does_not_stop_it_at_once(farm, fake):
    fake.spec = spec_of(rounds=20, keep_best="min:loss", target="loss<=0.5")
    farm.task("digits").continue_("+1")
    farm.task("digits").continue_("+1", recipe={"target": "loss<=0.1"})
    reached, new = fake.submitted
    assert reached.recipe.target is None
    assert "the target loss<=0.5 is reached where it begins, and left out" in reached.notes
    assert new.recipe.target == "loss<=0.1"


def test_a_contradiction_or_a_wrong_value_is_refused_before_it_is_sent(farm, fake):
    with pytest.raises(InvalidTask, match="max_clients is 1"):
        farm.task("digits").continue_("+1", recipe={"min_clients": 2, "max_clients": 1})
    with pytest.raises(InvalidTask, match="batch_samples"):
        farm.task("digits").continue_("+1", recipe={"batch_samples": 0})
    with pytest.raises(InvalidTask, match="name"):
        farm.task("digits").continue_("+1", name="x" * 5000)
    assert fake.submitted == []


def test_an_older_server_is_told_of_before_anything_happens(farm, fake):
    fake.features = ()
    with pytest.raises(InvalidTask, match="does not know continued_tasks: it must be upgraded first"):
        farm.task("digits").continue_("+1")
    assert fake.submitted == []


MADE_ROWS = """

def make_dataset(config):
    return [{"x": torch.zeros(2)} for _ in range(config.get("rows", 109))]
"""


def _keep_code(fake: FakeFarm, code: str = CODE) -> BlobRef:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.py", code)
    data = file.getvalue()
    fake.blobs[digest_bytes(data)] = data
    return BlobRef(digest=digest_bytes(data), size_bytes=len(data))


def test_the_servers_optimizer_comes_from_the_code_where_the_mode_changes(farm, fake, monkeypatch):
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))
    carried = spec_of(rounds=20, inner_state=InnerState.CARRIED)
    fake.spec = carried.model_copy(update={"code": _keep_code(fake), "config": {"lr": 0.25}})
    farm.task("digits").continue_("+5", recipe={"mode": "gradients"})
    (spec,) = fake.submitted
    assert (spec.recipe.mode, spec.recipe.inner_state) == (Mode.GRADIENTS, InnerState.FRESH)
    assert (spec.recipe.outer.name, spec.recipe.outer.options["lr"]) == ("adam", 0.25)
    outer = spec.recipe.outer
    lr = next(one.schedules["lr"] for one in (outer, *outer.groups) if one.schedules)
    assert sum(segment.steps for segment in lr.segments) == 25, "the schedule reaches to the new end"
    assert lr.least == pytest.approx(0.125)
    assert {"continued_tasks", "schedules"} <= set(spec.needs)
    assert "the server's optimizer begins anew: the mode was weights and is gradients" in spec.notes


def test_a_named_schedule_is_stretched_over_the_rounds_to_come(farm, fake):
    fake.spec = spec_of(rounds=20, schedule={"name": "cosine", "warmup": 0.5})
    farm.task("digits").continue_("+20")
    farm.task("digits").continue_("+20", recipe={"schedule": {"warmup": 4}})
    farm.task("digits").continue_("+20", recipe={"schedule": "constant"})
    kept, changed, other = (spec.recipe for spec in fake.submitted)
    assert (kept.rounds, kept.schedule) == (40, fake.spec.recipe.schedule)
    assert changed.schedule == NamedSchedule(name=ScheduleName.COSINE, warmup=4)
    assert other.schedule == NamedSchedule()
    assert "named_schedule" in fake.submitted[0].needs


def test_a_named_schedule_beside_another_is_refused(farm, fake):
    fake.spec = spec_of(rounds=20).model_copy(update={"has_scheduler": True})
    with pytest.raises(InvalidTask, match="follows the scheduler of its code: leave out schedule"):
        farm.task("digits").continue_("+5", recipe={"schedule": "cosine"})
    fake.spec = spec_of(rounds=20, mode="gradients")
    with pytest.raises(InvalidTask, match="the recipe has an outer one"):
        farm.task("digits").continue_("+5", recipe={"schedule": "cosine", "outer": {"name": "sgd"}})
    assert fake.submitted == []


def test_a_schedule_that_changes_in_gradients_mode_comes_from_the_code(farm, fake, monkeypatch):
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))
    spec = spec_of(rounds=20, mode="gradients")
    fake.spec = spec.model_copy(update={"code": _keep_code(fake), "config": {"lr": 0.25}})
    changes = {"schedule": {"name": "linear", "end": 0.2}}
    with pytest.raises(
        CheckFailed, match="the recipe's schedule is linear, and the code has a learning-rate scheduler"
    ):
        farm.task("digits").continue_("+5", recipe=changes)
    farm.task("digits").continue_("+5", recipe=changes | {"ignore": ("schedule",)})
    outer = fake.submitted[0].recipe.outer
    rates = next(one.schedules["lr"] for one in (outer, *outer.groups) if one.schedules)
    assert value_at(rates, 20) == pytest.approx(0.25 * (1 - 0.8 * 20 / 25))


@pytest.fixture
def built_here(fake, monkeypatch) -> TaskSpec:
    """Return a submission whose code the farm has, and the weights that it built; it is built in this process."""
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))
    weights = ModelTensors.of(torch.nn.Linear(2, 2)).weights_file()
    fake.blobs[digest_bytes(weights)] = weights
    fake.checkpoints = [make_checkpoint(20, digest=digest_bytes(weights), size_bytes=len(weights), newest=True)]
    config = {"lr": 0.25, "loss": {"weight": 1.0}}
    fake.spec = spec_of(rounds=20).model_copy(update={"code": _keep_code(fake), "config": config})
    return fake.spec


def test_the_code_gets_another_config(farm, fake, built_here):
    farm.task("digits").continued(Continuation("+5", config={"lr": 0.5}, assignments=("loss.weight=2.0", "name=new")))
    (spec,) = fake.submitted
    assert spec.config == {"lr": 0.5, "loss": {"weight": 2.0}, "name": "new"}
    assert built_here.config == {"lr": 0.25, "loss": {"weight": 1.0}}, "the task before has the one that it had"
    assert spec.has_scheduler, "which the code has"
    assert (spec.code, spec.dataset, spec.continues) == (
        built_here.code,
        built_here.dataset,
        Origin(task_id="abcd2345", round=20),
    )


def test_another_rate_in_gradients_mode_is_the_servers(farm, fake, built_here):
    fake.spec = built_here.model_copy(update={"recipe": spec_of(rounds=20, mode="gradients").recipe})
    farm.task("digits").continue_("+5", config={"lr": 0.5})
    farm.task("digits").continue_("+5", config={"lr": 0.5}, recipe={"outer": {"name": "sgd", "options": {"lr": 0.1}}})
    of_code, given = (spec.recipe.outer for spec in fake.submitted)
    assert (of_code.name, of_code.options["lr"]) == ("adam", 0.5)
    assert (given.name, given.options["lr"]) == ("sgd", 0.1)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"classes": 3},
            r"bias is F32 \[3\] in the model and F32 \[2\] in the checkpoint.* Leave that value as it was",
        ),
        ({"frozen": True}, "other tensors are frozen in it"),
        ({"since": dt.date(2026, 1, 1)}, "the config cannot be sent"),
    ],
)
def test_a_config_with_which_the_task_could_not_go_on_is_refused_by_name(farm, fake, built_here, config, said):
    with pytest.raises(InvalidTask, match=said):
        farm.task("digits").continue_("+5", config=config)
    assert fake.submitted == []


def test_code_that_reads_rows_in_order_is_built_as_that(farm, fake, built_here):
    state = "\n\ndef initial_state(model, batch_size, config):\n    return torch.zeros(batch_size)\n"
    code = _keep_code(fake, CODE.replace("def loss(model, batch):", "def loss(model, batch, state):") + state)
    in_order = spec_of(rounds=20, order=DataOrder.SEQUENTIAL, inner_state=InnerState.CARRIED).recipe
    dataset = Dataset(kind="files", shards=(Shard(index=0, samples=96, stride=3, blob=A_BLOB),))
    fake.spec = built_here.model_copy(update={"code": code, "recipe": in_order, "dataset": dataset})
    farm.task("digits").continue_("+5", config={"lr": 0.5})
    assert fake.submitted[0].config["lr"] == 0.5
    assert "the clients' optimizers begin anew: the config is another one" in " ".join(fake.submitted[0].notes)


def test_a_config_may_change_the_rows_but_not_how_many_there_are(farm, fake, built_here):
    code = _keep_code(fake, CODE + MADE_ROWS)
    dataset = built_here.dataset.model_copy(update={"kind": "code"})
    fake.spec = built_here.model_copy(update={"code": code, "dataset": dataset})
    with pytest.raises(CheckFailed, match="make_dataset gives 5 rows instead of 109"):
        farm.task("digits").continue_("+5", config={"rows": 5})
    farm.task("digits").continue_("+5", config={"lr": 0.5})
    assert len(fake.submitted) == 1


def test_what_would_need_a_base_folder_here_is_refused(farm, fake):
    file = BaseFile(path="config.json", blob=A_BLOB)
    fake.spec = spec_of(rounds=20).model_copy(update={"base": (file,)})
    with pytest.raises(InvalidTask, match="submit it again with --base and --from"):
        farm.task("digits").continue_("+5", recipe={"mode": "gradients"})
    with pytest.raises(InvalidTask, match="another config needs what the code builds from its base folder"):
        farm.task("digits").continue_("+5", config={"lr": 0.5})
    farm.task("digits").continue_("+5")
    assert fake.submitted[0].base == (file,)


async def test_the_same_for_an_event_loop(fake):
    async with AsyncFarm(ADDRESS) as farm:
        farm.sync.close()
        farm.sync = Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport()))
        task = await farm.task("digits")
        new = await task.continue_("+1", best=True)
        assert new.notes == fake.submitted[0].notes
