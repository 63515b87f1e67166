"""`farm pull --failed`: the steps in which a task's code failed, as folders that can be loaded and tried."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from farm_client import load_failed
from farm_client.sdk.api import FarmApi
from farm_client.sdk.async_farm import AsyncTask
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.farm import Task
from protocol.digests import digest_bytes
from protocol.errors import MalformedTensors, NotFound
from protocol.failed_steps import FailedStepView
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, make_task

LINE = "train.py:3, in loss"
TREE = {"dict": [["x", {"tensor": "batch/0"}], ["texts", {"list": [{"value": "a"}, {"value": "b"}]}]]}
X = torch.arange(6.0).view(2, 3)


def step_file(**record: Any) -> bytes:
    about = {"error": f"{LINE}: ValueError: bad", "line": LINE, "round": 3, "step": 5, "batch": TREE} | record
    tensors = {"weights/0.weight": torch.ones(2), "random/torch": torch.zeros(3), "batch/0": X}
    return save(tensors, {"failure": json.dumps(about), "steps": json.dumps({"steps": 4})})


def fail(fake: FakeFarm, *files: bytes) -> None:
    """Let the farm's task have failed, with these files kept."""
    fake.tasks = [make_task(state="failed", error=f"the task's code failed on a client: {LINE}: ValueError: bad")]
    fake.failed_steps = ()
    for number, data in enumerate(files):
        digest = digest_bytes(data)
        fake.blobs[digest] = data
        line = LINE if not number else f"train.py:{number}"
        fake.failed_steps += (FailedStepView(line=line, digest=digest, size_bytes=len(data)),)


def task_of(fake: FakeFarm) -> Task:
    return Task(FarmApi(parse_address(ADDRESS, "the test"), fake.transport()), fake.tasks[0])


def test_a_failed_step_is_written_and_loaded(farm, fake, tmp_path):
    fail(fake, step_file())
    output = tmp_path / "out" / "failed"
    outcome = farm("pull", "digits", "--failed", "-o", str(output))
    assert outcome.exit_code == 0
    assert outcome.stdout == f"{output}/1: round 3, step 5: {LINE}: ValueError: bad\n"
    assert f'step = load_failed("{output}/1")' in outcome.stderr
    assert "model.load_state_dict(step.weights, strict=False); loss(model.train(), step.batch)" in outcome.stderr
    assert sorted(path.name for path in (output / "1").iterdir()) == [
        "batch.safetensors",
        "failure.json",
        "state.safetensors",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["failed"]
    step = load_failed(output / "1")
    assert torch.equal(step.batch["x"], X)
    assert step.batch["texts"] == ["a", "b"]
    assert step.weights.keys() == {"0.weight"}
    assert step.about == json.loads((output / "1" / "failure.json").read_text())
    assert (step.about["task"], step.about["line"], step.about["step"]) == ("abcd2345", LINE, 5)


def test_each_failure_has_a_folder(farm, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fail(fake, step_file(), step_file(round=4))
    data = farm("pull", "digits", "--failed", "--json").envelope("failed_steps")
    assert data == {"task_id": "abcd2345", "folders": ["failed-abcd2345/1", "failed-abcd2345/2"]}
    assert [load_failed(folder).about["round"] for folder in data["folders"]] == [3, 4]


def test_show_and_why_say_that_it_is_there(farm, fake):
    fail(fake, step_file())
    assert LINE in farm("show", "digits").stdout
    assert "farm pull abcd2345 --failed" in farm("show", "digits").stdout
    why = farm("why", "digits")
    assert "farm pull abcd2345 --failed" in why.stderr
    assert "--failed" not in why.stdout


def test_why_is_silent_of_it_where_there_is_none(farm, fake):
    fail(fake)
    assert farm("why", "digits").stderr == ""


@pytest.mark.parametrize("options", [["--round", "2"], ["--best"], ["--format", "torch"], ["--merged"]])
def test_it_is_no_model(farm, fake, options):
    fail(fake, step_file())
    outcome = farm("pull", "digits", "--failed", *options)
    assert outcome.exit_code == 2
    assert "--failed fetches no model" in outcome.stderr


def test_a_task_that_has_not_failed(farm, fake, tmp_path):
    fake.failed_steps = ()
    outcome = farm("pull", "digits", "--failed", "-o", str(tmp_path / "f"))
    assert outcome.exit_code == 1
    assert "the code of task abcd2345 has not failed" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_which_nothing_is_kept(farm, fake, tmp_path):
    fail(fake)
    outcome = farm("pull", "digits", "--failed", "-o", str(tmp_path / "f"))
    assert outcome.exit_code == 1
    assert "`farm logs abcd2345` say what happened" in outcome.stderr


def test_a_farm_that_is_older(farm, fake, tmp_path):
    outcome = farm("pull", "digits", "--failed", "-o", str(tmp_path / "f"))
    assert outcome.exit_code == 1
    assert "it must be upgraded first" in outcome.stderr


def test_a_folder_that_is_there(farm, fake, tmp_path):
    fail(fake, step_file())
    outcome = farm("pull", "digits", "--failed", "-o", str(tmp_path))
    assert outcome.exit_code == 1
    assert "is there already: name a new folder with -o" in outcome.stderr


@pytest.mark.parametrize("data", [b"no tensor file", save({"x": X}), step_file(batch=None)[:200]])
def test_a_file_that_is_none_leaves_nothing(fake: FakeFarm, tmp_path: Path, data: bytes) -> None:
    fail(fake, data)
    with pytest.raises(MalformedTensors, match="can't be read"):
        task_of(fake).pull_failed(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_python_writes_the_same(fake: FakeFarm, tmp_path: Path) -> None:
    fail(fake, step_file())
    task = task_of(fake)
    assert task.pull_failed(tmp_path / "sync") == [tmp_path / "sync" / "1"]
    assert asyncio.run(AsyncTask(task).pull_failed(tmp_path / "async")) == [tmp_path / "async" / "1"]
    with pytest.raises(BadOutput):
        task.pull_failed(tmp_path / "sync")
    fake.failed_steps = ()
    with pytest.raises(NotFound):
        task.pull_failed(tmp_path / "none")


def test_a_state_that_was_too_large_leaves_the_batch(fake: FakeFarm, tmp_path: Path) -> None:
    about = {"error": "x", "line": "x", "batch": TREE, "left_out": ["the state: it is over 9 bytes"]}
    fail(fake, save({"batch/0": X}, {"failure": json.dumps(about)}))
    (folder,) = task_of(fake).pull_failed(tmp_path / "f")
    step = load_failed(folder)
    assert (step.weights, step.about["left_out"]) == ({}, ["the state: it is over 9 bytes"])
    assert torch.equal(step.batch["x"], X)


def test_a_spoilt_folder_is_refused(fake: FakeFarm, tmp_path: Path) -> None:
    fail(fake, step_file(batch={"pickle": "x"}))
    (folder,) = task_of(fake).pull_failed(tmp_path / "f")
    with pytest.raises(MalformedTensors, match="holds no failed step"):
        load_failed(folder)
