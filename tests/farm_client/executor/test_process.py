"""A real executor process over a socket pair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from farm_client.executor.channel import FD_VARIABLE
from farm_client.executor.messages import (
    Done,
    Failed,
    Loaded,
    Run,
    Stop,
    Warm,
)
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.messages import Scope
from tests.farm_client.executor.agent_side import Agent, load_order, run_order, started
from tests.farm_client.executor.bench_task import write_data
from tests.injection.client import BREAKABLE_EXECUTOR
from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE

TRAIN = """
    import sys, time
    import torch
    from torch import nn
    from farm_client.task import log

    def build_model(config):
        print("building", file=sys.stderr)
        return nn.Linear(3, 2)

    def loss(model, batch):
        time.sleep(config_sleep)
        log(step=1, metrics={"rows": len(batch["y"])})
        print("a batch")
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    config_sleep = 0.0
"""


@pytest.fixture
def agent() -> Iterator[Agent]:
    with started() as agent:
        yield agent


def test_a_task_from_warm_to_stop(agent: Agent, tmp_path: Path) -> None:
    shards, files = write_data(tmp_path)
    warm = agent.hear()
    assert isinstance(warm, Warm)
    assert warm.torch_version == torch.__version__
    agent.send(load_order(tmp_path, TRAIN))
    assert agent.hear() == Loaded()
    first = run_order(shards, files)
    agent.send(first)
    advances, done = agent.hear_end()
    assert isinstance(done, Done)
    assert done.samples == 72
    assert done.update is not None
    assert digest_bytes(done.update) == done.update_digest
    assert done.compute_seconds > 0
    assert list(done.stage_seconds) == ["load", "train", "copy", "write"]
    assert sum(done.stage_seconds.values()) == pytest.approx(done.compute_seconds, rel=0.2, abs=0.05)
    assert [point.value for advance in advances for point in advance.metrics] == [8.0] * 9
    agent.send(first.model_copy(update={"assignment_id": "a2", "weights": None}))
    again = agent.hear_end()[1]
    assert isinstance(again, Done)
    assert again.update == done.update
    agent.send(Stop())
    out, err = agent.process.communicate(timeout=30)
    assert agent.process.returncode == 0
    assert out.decode().splitlines() == ["a batch"] * 18
    assert err.decode() == "building\n"


def test_progress_is_reported_a_few_times_a_second(agent: Agent, tmp_path: Path) -> None:
    shards, files = write_data(tmp_path)
    assert isinstance(agent.hear(), Warm)
    agent.send(load_order(tmp_path, TRAIN.replace("config_sleep = 0.0", "config_sleep = 0.1")))
    assert agent.hear() == Loaded()
    agent.send(run_order(shards, files))
    advances, done = agent.hear_end()
    assert isinstance(done, Done)
    assert 2 <= len(advances) <= 5
    counts = [advance.samples_done for advance in advances]
    assert counts == sorted(counts)
    assert counts[-1] == 72


def test_failures_are_reported_and_the_executor_stays(agent: Agent, tmp_path: Path) -> None:
    shards, files = write_data(tmp_path)
    assert isinstance(agent.hear(), Warm)
    agent.send(run_order(shards, files))
    early = agent.hear()
    assert isinstance(early, Failed)
    assert early.code == "out_of_order"
    agent.send(load_order(tmp_path, "x = 1 / 0\n"))
    broken = agent.hear()
    assert isinstance(broken, Failed)
    assert (broken.assignment_id, broken.scope) == (None, Scope.NOBODY)
    assert broken.message.startswith("train.py:1: ZeroDivisionError")
    assert broken.traceback is not None
    assert "train.py" in broken.traceback
    agent.send(load_order(tmp_path, TRAIN))
    assert agent.hear() == Loaded()
    agent.send(run_order(shards, dict.fromkeys(files, tmp_path / "gone")))
    missing = agent.hear_end()[1]
    assert isinstance(missing, Failed)
    assert (missing.assignment_id, missing.code, missing.scope) == ("a1", "missing_file", Scope.HERE)
    agent.send(run_order(shards, files))
    assert isinstance(agent.hear_end()[1], Done)


def loaded_with(agent: Agent, folder: Path) -> Run:
    """Load the task; return an order for it."""
    shards, files = write_data(folder)  # makes the folder
    assert isinstance(agent.hear(), Warm)
    agent.send(load_order(folder, TRAIN))
    assert agent.hear() == Loaded()
    return run_order(shards, files)


@pytest.mark.parametrize("place", ["executor_before", "executor_during", "executor_after"])
def test_a_planned_death_happens_in_its_round_and_once(tmp_path: Path, place: str) -> None:
    plan = {FAULTS_VARIABLE: f"{place}@1:segfault", SPENT_VARIABLE: str(tmp_path / "spent")}
    with started(BREAKABLE_EXECUTOR, **plan) as agent:
        order = loaded_with(agent, tmp_path)
        agent.send(order)
        assert isinstance(agent.hear_end()[1], Done)
        agent.send(order.model_copy(update={"round": 1, "kind": Kind.EVALUATE}))
        assert isinstance(agent.hear_end()[1], Done)
        agent.send(order.model_copy(update={"round": 1}))
        assert agent.process.wait(timeout=30) == -signal.SIGSEGV
    with started(BREAKABLE_EXECUTOR, **plan) as agent:
        agent.send(loaded_with(agent, tmp_path / "again").model_copy(update={"round": 1}))
        assert isinstance(agent.hear_end()[1], Done)


def test_planned_errors_are_reported_as_what_they_are(tmp_path: Path) -> None:
    plan = {FAULTS_VARIABLE: "executor_before@0:raise,executor_during@1:oom,executor_slow@*:0.01"}
    with started(BREAKABLE_EXECUTOR, **plan) as agent:
        order = loaded_with(agent, tmp_path)
        for number, code in enumerate(("injected_fault", "out_of_memory")):
            agent.send(order.model_copy(update={"round": number}))
            failed = agent.hear_end()[1]
            assert isinstance(failed, Failed)
            assert (failed.code, failed.scope) == (code, Scope.ELSEWHERE)
        agent.send(order)
        assert isinstance(agent.hear_end()[1], Done)


def test_the_executor_ends_with_its_agent(agent: Agent) -> None:
    assert isinstance(agent.hear(), Warm)
    agent.connection.close()
    assert agent.process.wait(timeout=30) == 0


def test_started_by_hand_it_says_how_it_is_meant_to_start() -> None:
    environment = {key: value for key, value in os.environ.items() if key != FD_VARIABLE}
    ended = subprocess.run(
        [sys.executable, "-m", "farm_client.executor"], env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 2
    assert b"farm-client join" in ended.stderr
    assert b"Traceback" not in ended.stderr


RECORDER = "tests.farm_client.executor.cuda_recorder"


def test_a_spare_opens_no_accelerator_before_its_task_comes(tmp_path: Path) -> None:
    """A stand-in for a card: what would open one is noted. Nothing does before the load, and something after it."""
    calls = tmp_path / "calls"
    root = {"PYTHONPATH": str(Path(__file__).parents[3]), "CUDA_CALLS": str(calls)}
    with started(RECORDER, CUDA_VISIBLE_DEVICES="0", **root) as agent:
        assert isinstance(agent.hear(), Warm)
        assert calls.read_text() == ""
        agent.send(load_order(tmp_path, TRAIN))
        assert agent.hear() == Loaded()
        assert "torch.cuda.is_available" in calls.read_text()


def test_a_spare_without_an_accelerator_takes_its_first_step_before_its_task_comes(tmp_path: Path) -> None:
    root = {"PYTHONPATH": str(Path(__file__).parents[3]), "CUDA_CALLS": str(tmp_path / "calls")}
    with started(RECORDER, CUDA_VISIBLE_DEVICES="", **root) as agent:
        assert isinstance(agent.hear(), Warm)
        assert "AdamW.step" in (tmp_path / "calls").read_text()
