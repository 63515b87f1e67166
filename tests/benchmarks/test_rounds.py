"""The rounds benchmark: its window is counted between commits, and it runs against a real farm."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import typer

from benchmarks import rounds
from benchmarks.farm import BenchmarkError, RunningFarm
from benchmarks.noop_task import train
from benchmarks.report import whole_numbers
from protocol.rest import RoundView, TaskDetail, TaskView

VIEW = TaskView(
    task_id="t",
    name="noop",
    submitter="bench",
    state="running",
    why="",
    priority=5,
    mode="gradients",
    round=0,
    rounds_total=10,
    epoch=0,
    clients=2,
    samples_done=0,
    samples_per_second=0.0,
)


def committed(number: int, at: float) -> RoundView:
    return RoundView(
        number=number, state="committed", epoch=0, samples=1, clients=2, seconds=0.1, loss=None, committed_at=at
    )


class FakeApi:
    """Answers ``task`` from a script; the last answer repeats."""

    def __init__(self, *answers: tuple[str, tuple[RoundView, ...]]) -> None:
        self.answers = list(answers)

    def task(self, task_id: str) -> TaskDetail:
        state, views = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        view = VIEW.model_copy(update={"state": state, "why": "out of luck"})
        return TaskDetail.model_construct(task=view, spec=None, rounds=views)

    def why(self, task_id: str) -> str:
        return "waiting for luck"


def farm_with(api: FakeApi) -> RunningFarm:
    return RunningFarm(processes=None, api=api)


def test_the_window_lies_between_two_commits(monkeypatch):
    monkeypatch.setattr(rounds, "POLL_SECONDS", 0)
    warm = (committed(5, 100.0), committed(4, 99.0))
    later = (committed(25, 110.0), committed(24, 109.5))
    window = rounds._observe(farm_with(FakeApi(("running", warm), ("running", warm), ("running", later))), "t", 0.01)
    assert (window.rounds, window.seconds) == (20, 10.0)


def test_an_open_round_is_not_counted():
    unfinished = committed(9, 1.0).model_copy(update={"state": "open", "committed_at": None})
    farm = farm_with(FakeApi(("running", (unfinished, committed(8, 100.0)))))
    assert rounds._newest(farm, "t").number == 8


def test_a_task_that_ended_stops_the_measurement():
    with pytest.raises(BenchmarkError, match="failed: out of luck"):
        rounds._newest(farm_with(FakeApi(("failed", ()))), "t")


def test_a_stalled_task_stops_the_measurement(monkeypatch):
    monkeypatch.setattr(rounds, "POLL_SECONDS", 0)
    stalled = FakeApi(("running", (committed(5, 100.0),)))
    with pytest.raises(BenchmarkError, match="waiting for luck"):
        rounds._observe(farm_with(stalled), "t", 0.01)


def test_a_result_is_one_line_of_rounded_json():
    measured = rounds.Measured("rounds", 2, 100, "weights", 10, 1.23456, 8.1, 1, 2, 0, 81.0, 0.1)
    line = replace(measured, ratio=1 / 3).to_json()
    assert "\n" not in line
    assert json.loads(line)["seconds"] == 1.235
    assert json.loads(line)["ratio"] == 0.3333


def test_the_task_gives_a_gradient_of_the_models_size():
    model = train.build_model({"params": 1000})
    train.loss(model, torch.ones(64, 1)).backward()
    assert model.flat.grad.shape == (1000,)


def test_no_two_parts_of_the_data_give_the_same_update():
    dataset = train.make_dataset({"samples": 512})
    assert len(dataset) == 512
    halves = [torch.stack([dataset[i] for i in half]).mean() for half in (range(0, 512, 2), range(1, 512, 2))]
    assert halves[0] != halves[1]


@pytest.mark.parametrize(("text", "numbers"), [("2,8", [2, 8]), ("1e5,1e7", [100_000, 10_000_000])])
def test_lists_of_numbers(text, numbers):
    assert whole_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "two", "0", "1.5", "-3"])
def test_other_lists_are_refused(text):
    with pytest.raises(typer.BadParameter):
        whole_numbers(text)


@pytest.mark.slow
def test_a_real_farm_is_measured():
    command = [sys.executable, "-m", "benchmarks", "rounds", "--clients", "2", "--params", "1e3", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    machine, measured = map(json.loads, done.stdout.splitlines())
    assert machine["benchmark"] == "machine"
    assert (measured["benchmark"], measured["clients"], measured["params"]) == ("rounds", 2, 1000)
    assert measured["rounds_per_s"] > 1
    assert measured["server_peak_rss_bytes"] > 10e6
    assert measured["wire_bytes"] > 4 * 1000 * 2 * 2 * measured["rounds"]
    assert 0 < measured["ratio"] < 1
