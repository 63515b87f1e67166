"""A client of two processes on a real farm: one of them is killed at work, and the model and the books are right."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from farm_client.executor.followers import FOLLOWER_MODULE
from tests.e2e.conftest import RealFarm, real_farm

CODE = """
    import threading
    import torch
    from torch import nn

    steps = []

    def build_model(config):
        global waits_at_step
        waits_at_step = config["waits_at_step"]
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def loss(model, batch):
        steps.append(len(batch["y"]))
        if len(steps) == waits_at_step:  # of this process, and no other one gets so far
            print("waiting", flush=True)
            threading.Event().wait(600)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=0.01)
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    rounds = 2
    round_samples = 200
    batch_samples = 8
    mode = "weights"
    evaluate_every = 0

    [config]
    waits_at_step = 0
"""


@pytest.mark.slow
def test_a_process_of_several_that_is_killed_costs_an_attempt_and_no_sample(tmp_path: Path) -> None:
    """A round has 25 steps, so the executor waits in the second one, and the next executor has that one alone."""
    x = np.random.default_rng(0).normal(size=(400, 4)).astype("f4")
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text(textwrap.dedent(TASK))
    with real_farm(tmp_path / "farm", 1) as farm:
        expected = trained(farm, farm.submit(str(tmp_path)))
        farm.kill(farm.volunteers[0].pid)
        farm.add_volunteer("node", FARM_CLIENT_PROCESSES="2", FARM_CLIENT_SPARE_EXECUTOR="false")
        (tmp_path / "task.toml").write_text(textwrap.dedent(TASK).replace("step = 0", "step = 30"))
        task = farm.submit(str(tmp_path), "--no-check")
        farm.wait_until(lambda: "waiting" in printed(farm, task), "the second round is under way")
        farm.kill(only_follower(farm), signal.SIGKILL)
        found = trained(farm, task)
        assert "process 1 of this executor's 2, from 0, ended by SIGKILL" in printed(farm, task)
        books = farm.api.shards(task)
        assert sum(book.counted_samples for book in books) == 400
        assert [book for book in books if book.repeated_samples] == []
        assert farm.api.task(task).task.round == 2
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():  # sums of two halves are rounded otherwise than those of a whole
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def only_follower(farm: RealFarm) -> int:
    """Return the id of the second process of the only executor that the last volunteer has."""
    children = [psutil.Process(pid) for pid in farm.executors_of(farm.volunteers[-1])]
    (found,) = [child.pid for child in children if FOLLOWER_MODULE in child.cmdline()]
    return found


def printed(farm: RealFarm, task: str) -> str:
    """Return what a task has printed so far."""
    return "\n".join(line.text for line in farm.api.logs(task))


def trained(farm: RealFarm, task: str) -> dict[str, torch.Tensor]:
    """Wait for a task's end and return its model."""
    farm.wait_until(lambda: farm.api.task(task).task.state == "completed", "the task is completed")
    file = farm.folder / f"{task}.safetensors"
    assert farm.run("pull", task, "-o", str(file)).exit_code == 0
    return load_file(file)
