"""The Python API against a farm that answers from memory; tests/e2e/test_python_api.py trains on a real one."""

from __future__ import annotations

import httpx
import pytest
import torch

import farm_client
from farm_client import AsyncFarm, Farm
from farm_client.executor.layout import ModelTensors
from farm_client.executor.rehearsal import rehearse
from farm_client.own_loop import host_parts
from farm_client.sdk import check
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadOutput, NoFarmAddress
from farm_client.sdk.outcome import TaskEnded
from protocol.digests import digest_bytes
from protocol.errors import Conflict, InvalidTask, NotFound
from protocol.recipe import Recipe, Requirements
from protocol.rest import LogView, MetricView
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, make_checkpoint, make_client, make_task

CODE = """
import torch


def build_model(config):
    return torch.nn.Linear(2, config["classes"])


def loss(model, batch):
    return model(batch["x"]).sum()


def make_dataset(config):
    return [{"x": torch.ones(2)}] * 40
"""


@pytest.fixture(autouse=True)
def _in_process(monkeypatch):
    """A process of its own takes seconds to import torch."""
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))
    yield
    host_parts(None)


@pytest.fixture
def fake() -> FakeFarm:
    return FakeFarm()


@pytest.fixture
def farm(fake):
    with Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport())) as farm:
        yield farm


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(CODE)
    return path


def values(count=3):
    return [
        MetricView(seq=n, at=1_700_000_000.0 + n, round=n, step=n, name="loss", value=1 / n, source="train")
        for n in range(1, count + 1)
    ]


def test_the_package_gives_what_programs_need_and_says_what_it_has_not():
    assert {farm_client.Farm, farm_client.AsyncFarm} == {Farm, AsyncFarm}
    assert callable(farm_client.log)
    with pytest.raises(AttributeError, match="has no attribute 'Frm'"):
        _ = farm_client.Frm


def test_without_an_address_the_environment_counts_and_then_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("FARM_URL", ADDRESS)
    with Farm() as farm:
        assert farm.api.address.url == "http://farm.test:8470"
    monkeypatch.delenv("FARM_URL")
    monkeypatch.setenv("FARM_CONFIG", str(tmp_path / "nothing.toml"))
    with pytest.raises(NoFarmAddress):
        Farm()


def test_a_submission_says_what_the_command_line_would(farm, fake, code):
    seen = []
    task = farm.submit(
        code,
        recipe={"epochs": 2, "batch_samples": 8, "update_codec": "int8"},
        config={"classes": 3},
        requirements=Requirements(cpu_cores=2),
        name="mine",
        holdout=0.25,
        on_progress=lambda what, done, total: seen.append(what),
    )
    (spec,) = fake.submitted
    assert (spec.name, spec.recipe.epochs, spec.recipe.rounds, spec.recipe.batch_samples) == ("mine", 2, None, 8)
    assert spec.recipe.update_codec.name == "int8"
    assert (spec.config, spec.requirements.cpu_cores) == ({"classes": 3}, 2)
    assert sum(s.samples for s in spec.dataset.shards if s.split == "holdout") == 10
    assert spec.submitter != "anonymous"
    assert "checking" in seen
    assert spec.code.digest in fake.blobs
    assert task.view().task_id == task.id


def test_a_settings_file_beside_the_code_counts_and_what_is_given_wins(farm, fake, code):
    (code.parent / "task.toml").write_text("[recipe]\nrounds = 7\nbatch_samples = 4\n[config]\nclasses = 2\n")
    farm.submit(code, recipe=Recipe(epochs=1))
    (spec,) = fake.submitted
    assert (spec.recipe.epochs, spec.recipe.rounds, spec.recipe.batch_samples) == (1, None, 4)
    assert spec.config == {"classes": 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"recipe": {"epoch": 1}}, "there is no 'epoch'"),
        ({"holdout": 2}, "holdout"),
        ({"nmae": "x"}, "nmae"),
        ({"data": "nosuch.npz", "config": {"classes": 1}}, "nosuch.npz"),
        ({"settings": "nosuch.toml"}, "nosuch.toml"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_sent(farm, fake, code, arguments, said):
    with pytest.raises(Exception, match=said) as raised:
        farm.submit(code, **arguments)
    assert raised.type.__module__.startswith(("protocol", "farm_client"))
    assert not fake.submitted


def test_tasks_are_found_as_a_person_means_them(farm):
    assert farm.task("digits").id == farm.task("abcd").id == farm.tasks()[0].id == "abcd2345"
    with pytest.raises(NotFound):
        farm.task("nosuch")
    assert repr(farm.task("digits")) == "<Task digits (abcd2345)>"


def test_clients_are_listed(farm, fake):
    fake.clients = [make_client("laptop"), make_client("tower")]
    assert [client.name for client in farm.clients()] == ["laptop", "tower"]


def test_waiting_gives_a_completed_task_and_raises_for_every_other_end(farm, fake):
    task = farm.task("digits")
    fake.tasks = [make_task(state="completed")]
    assert task.wait().state == "completed"
    fake.tasks = [make_task(state="failed", error="train.py:3: ValueError: no")]
    with pytest.raises(TaskEnded, match="ValueError: no") as raised:
        task.wait()
    assert raised.value.task.state == "failed"
    fake.tasks = [make_task(state="running", why="round 3 is with 2 clients")]
    with pytest.raises(TimeoutError, match="is running after 0 s: round 3"):
        task.wait(timeout_seconds=0)


def test_watching_prints_lines_where_there_is_no_terminal(farm, fake, capsys):
    fake.tasks = [make_task(state="completed", why="")]
    assert farm.task("digits").watch().state == "completed"
    assert (
        capsys.readouterr().out == "completed  round 3/20  loss 0.4123  accuracy 0.9312  1,234 samples/s  2 clients\n"
    )


def test_metrics_are_a_data_frame(farm, fake):
    fake.metrics = values()
    frame = farm.task("digits").metrics()
    assert list(frame.value) == [1.0, 0.5, 1 / 3]
    assert frame.index.name == "seq"
    assert frame.set_index("round").loc[2, "name"] == "loss"
    assert str(frame["at"].dt.tz) == "UTC"


def test_no_metric_yet_is_an_empty_frame_with_its_columns(farm):
    frame = farm.task("digits").metrics()
    assert frame.empty
    assert {"round", "name", "value"} <= set(frame.columns)


def test_logs_are_read(farm, fake):
    fake.logs = [LogView(seq=1, at=1.0, client_id="c", client_name="laptop", round=0, stream="stdout", text="hello")]
    assert [line.text for line in farm.task("digits").logs()] == ["hello"]


def test_a_folder_is_no_place_for_a_model(farm, tmp_path):
    with pytest.raises(BadOutput):
        farm.task("digits").pull(tmp_path)


def test_a_best_model_needs_a_rule(farm):
    with pytest.raises(InvalidTask, match="keep-best"):
        farm.task("digits").pull(best=True)


def test_what_the_farm_refuses_is_raised(farm, fake):
    refusal = httpx.Response(409, json={"code": "conflict", "message": "it is completed"})
    fake.overrides["POST", "/v1/tasks/abcd2345/pause"] = lambda: refusal
    with pytest.raises(Conflict, match="it is completed"):
        farm.task("digits").act("pause")


async def test_an_event_loop_gets_the_same(fake, code):
    farm = AsyncFarm(ADDRESS)
    farm.sync.close()
    farm.sync = Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport()))
    async with farm:
        task = await farm.submit(code, recipe={"rounds": 2}, config={"classes": 2})
        assert [t.id for t in await farm.tasks()] == [task.id]
        fake.tasks = [make_task(task.id, state="completed")]
        fake.metrics = values(2)
        assert (await task.wait()).state == (await task.view()).state == "completed"
        assert len(await task.metric_values()) == len(await task.metrics()) == 2
        assert [scene.detail.task.state async for scene in task.scenes()] == ["completed"]
        assert [line async for line in task.logs()] == []
        assert (await farm.task("digits")).name == "digits"
        assert (await farm.clients())[0].name == "laptop"


SCRIPT = """
import torch
import farm_client as farm

data = torch.utils.data.TensorDataset(torch.randn(40, 2), torch.randn(40, 1))
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=farm.config(lr=0.1)["lr"])
for part in farm.parts(ARGUMENTS):
    for x, y in part.loader(data, batch_size=10):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    part.done()
"""


@pytest.fixture
def script(tmp_path):
    def write(arguments="model, optimizer"):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.replace("ARGUMENTS", arguments))
        return path

    return write


def test_a_script_is_submitted_as_it_is_and_its_rows_are_counted(farm, fake, script):
    task = farm.submit(script(), recipe={"rounds": 2}, holdout=0.25)
    (spec,) = fake.submitted
    assert (spec.recipe.mode, spec.recipe.inner_state, spec.recipe.max_clients) == ("weights", "carried", 1)
    assert spec.recipe.evaluate_every == 0, "it gives no function for held-out rows"
    assert sum(shard.samples for shard in spec.dataset.shards) == 40
    assert "the script takes its steps itself" in spec.notes[0]
    assert task.id


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"keep_best": "min:loss"}, "keep_best needs held-out metrics"),
        ({"evaluate_every": 2}, "evaluate_every needs held-out metrics"),
        ({"mode": "gradients"}, "use --mode weights"),
    ],
)
def test_what_a_script_can_not_do_is_said_and_nothing_is_sent(farm, fake, script, recipe, said):
    with pytest.raises(InvalidTask, match=said):
        farm.submit(script(), recipe={"rounds": 2, **recipe}, holdout=0.25)
    assert not fake.submitted


def test_a_script_whose_state_travels_must_give_what_has_it(farm, fake, script):
    with pytest.raises(InvalidTask, match="optimizer"):
        farm.submit(script("model"), recipe={"rounds": 2, "mode": "weights", "inner_state": "carried"})
    assert not fake.submitted


def test_early_stops_are_settings_like_others(farm, fake, code):
    recipe = {"rounds": 9, "keep_best": "min:loss", "patience": 2, "target": "loss<=0.1", "max_seconds": 60}
    farm.submit(code, recipe=recipe, config={"classes": 2}, holdout=0.25)
    (spec,) = fake.submitted
    assert (spec.recipe.patience, spec.recipe.target, spec.recipe.max_seconds) == (2, "loss<=0.1", 60.0)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"patience": 2}, "add keep_best"),
        ({"target": "loss"}, "is no target"),
        ({"target": "loss<=1", "evaluate_every": 0}, "evaluate_every is 0"),
        ({"patience": 0}, "greater than or equal to 1"),
        ({"max_seconds": -1}, "max_seconds"),
    ],
)
def test_early_stops_that_can_not_be_are_refused(farm, fake, code, recipe, said):
    with pytest.raises(InvalidTask, match=said):
        farm.submit(code, recipe={"rounds": 9, **recipe}, config={"classes": 2}, holdout=0.25)
    assert not fake.submitted


def test_a_task_begins_with_the_weights_of_another_one(farm, fake, code):
    model = torch.nn.Linear(2, 2)
    weights = ModelTensors.of(model).weights_file()
    digest = digest_bytes(weights)
    fake.blobs[digest] = weights
    fake.checkpoints = [make_checkpoint(7, digest=digest, size_bytes=len(weights), newest=True)]
    farm.submit(code, start="digits@7", recipe={"rounds": 2}, config={"classes": 2})
    (spec,) = fake.submitted
    assert spec.initial_weights.digest == digest
    with pytest.raises(NotFound, match="kept are: 7"):
        farm.warm_start("digits@3")
