"""Mistakes that people make: each is told in one line, with a non-zero exit code, and the farm goes on serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from farm_client import load_failed
from farm_client.cli.exit_codes import ExitCode
from tests.e2e.conftest import RealFarm

pytestmark = pytest.mark.slow

MODEL = "import torch\n\ndef build_model(config):\n    return torch.nn.Linear(3, 1)\n"
GOOD = MODEL + "\ndef loss(model, batch):\n    return model(batch['x']).square().mean()\n"
WRONG_SHAPE = MODEL + "\ndef loss(model, batch):\n    return model(batch['x'][:, :2]).mean()\n"
NAN = MODEL + "\ndef loss(model, batch):\n    return model(batch['x']).mean() * float('nan')\n"
NO_MODEL = "def loss(model, batch):\n    return batch['x'].mean()\n"
SYNTAX_ERROR = MODEL + "\ndef loss(model, batch:\n    return 0\n"


@pytest.fixture
def farm(shared_farm: RealFarm) -> Iterator[RealFarm]:
    yield shared_farm
    shared_farm.api.tasks()  # fails if the farm does not serve any more
    shared_farm.processes.check()


def write_task(folder: Path, code: str, rows: int = 16) -> list[str]:
    (folder / "train.py").write_text(code)
    np.savez(folder / "data.npz", x=np.ones((rows, 3), dtype=np.float32))
    return [str(folder / "train.py"), "--data", str(folder / "data.npz"), "--rounds", "2"]


@pytest.mark.parametrize(
    ("code", "rows", "said"),
    [
        pytest.param(SYNTAX_ERROR, 16, ["train.py:6"], id="syntax error"),
        pytest.param(NO_MODEL, 16, ["build_model", "add it"], id="no build_model"),
        pytest.param(WRONG_SHAPE, 16, ["train.py:7", "shape"], id="shape mismatch in the first batch"),
        pytest.param(GOOD, 0, ["row"], id="empty data set"),
        pytest.param(NAN, 16, ["nan", "learning rate"], id="NaN loss"),
    ],
)
def test_a_submission_that_cannot_work(farm, tmp_path, code, rows, said):
    before = len(farm.api.tasks())
    answer = farm.run("submit", *write_task(tmp_path, code, rows))
    assert answer.exit_code == ExitCode.FAILURE
    assert [word for word in said if word not in answer.only_line] == [], answer.only_line
    assert len(farm.api.tasks()) == before


def test_a_module_that_no_volunteer_has_is_named_to_all_and_nobody_is_blamed(farm, tmp_path):
    task_id = farm.submit(*write_task(tmp_path, GOOD), "--module", "aifarm_nowhere")
    lack = "No module named 'aifarm_nowhere'"
    names = [volunteer.name for volunteer in farm.volunteers]
    farm.wait_until(lambda: farm.api.task(task_id).task.why.count(lack) == len(names), "all volunteers said so")
    researchers, operators = farm.run("why", task_id).stdout, [event.message for event in farm.api.events(task_id)]
    for volunteer in farm.volunteers:
        assert f"{volunteer.name} lacks what the task imports: {lack}" in researchers
        assert f"{volunteer.name}: missing_module: {lack}" in operators
        assert f"train: {lack}; install it here and join again" in volunteer.log.read_text()
    assert farm.run("cancel", task_id).exit_code == 0
    assert [(client.name, client.failed) for client in farm.api.clients() if client.failed] == []


@pytest.mark.parametrize(("code", "said"), [(WRONG_SHAPE, "line 7"), (NAN, "loss is nan")])
def test_code_that_fails_on_the_volunteers_fails_its_task_with_the_reason(farm, tmp_path, code, said):
    task_id = farm.submit(*write_task(tmp_path, code), "--no-check")
    answer = farm.run("wait", task_id, "--timeout", "60")
    assert answer.exit_code == ExitCode.TASK_FAILED
    assert "farm logs" in answer.stderr
    logs = farm.run("logs", task_id).stdout
    assert said in logs
    assert "volunteer-1" in logs
    assert "--failed" in farm.run("why", task_id).stderr
    assert farm.run("pull", task_id, "--failed", "-o", str(tmp_path / "failed")).exit_code == 0
    step = load_failed(tmp_path / "failed" / "1")
    assert step.batch["x"].shape == (step.about["samples"], 3)
    assert step.weights["weight"].shape == (1, 3)
    assert (step.about["round"], step.about["step"]) == (0, 1)


def test_an_unknown_task(farm):
    answer = farm.run("show", "nosuch")
    assert answer.exit_code == ExitCode.FAILURE
    assert "`farm ls` lists the tasks" in answer.only_line


def test_a_wrong_url(farm):
    answer = farm.run("ls", FARM_URL="http://token@127.0.0.1:1")
    assert answer.exit_code == ExitCode.NO_FARM
    assert "farm-server up" in answer.only_line


def test_the_address_that_volunteers_use(farm):
    answer = farm.run("ls", "--farm", farm.processes.join_url)
    assert answer.exit_code == ExitCode.USAGE
    assert "http://" in answer.only_line


@pytest.mark.parametrize("token", ["", "wrong@"])
def test_a_wrong_token(farm, token):
    address = farm.processes.address.url.replace("//", f"//{token}")
    answer = farm.run("submit", "train.py", "--farm", address)
    assert answer.exit_code == ExitCode.NO_FARM
    assert "token" in answer.only_line


def test_a_join_token_does_not_submit(farm):
    join_token = farm.processes.join_url.split("//")[1].split("@")[0]
    answer = farm.run("ls", "--farm", farm.processes.address.url.replace("//", f"//{join_token}@"))
    assert answer.exit_code == ExitCode.NO_FARM
    assert "farm token" in answer.only_line


def test_after_all_of_it_a_good_task_trains(farm, tmp_path):
    task_id = farm.submit(*write_task(tmp_path, GOOD))
    assert farm.run("wait", task_id, "--timeout", "60").exit_code == ExitCode.OK
