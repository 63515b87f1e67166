"""The rounds benchmark: its window is counted between commits, and it runs against a real farm."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import references, rounds
from benchmarks.ddp import Ddp
from benchmarks.farm import BenchmarkError, RunningFarm
from benchmarks.meters import ServerCount
from benchmarks.noop_task import train
from benchmarks.references import References
from farm_client.sdk.config import FarmAddress
from protocol.rest import RoundView, TaskDetail, TaskView

CASE = rounds.Case(clients=2, params=100, mode="weights", seconds=0.01, settle_seconds=0)
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

    address = FarmAddress("http://127.0.0.1:1", None, "a test")

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


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    """A server that counted 100 bytes up and 300 down, and 10 rounds, since the last look."""
    monkeypatch.setattr(rounds, "POLL_SECONDS", 0)
    looks = (ServerCount(100 * n, 300 * n, 1.5 * n, 10 * n) for n in itertools.count())
    monkeypatch.setattr(rounds, "server_count", lambda _: next(looks))


def test_the_window_lies_between_two_commits():
    warm = (committed(5, 100.0), committed(4, 99.0))
    later = (committed(25, 110.0), committed(24, 109.5))
    api = FakeApi(("running", warm), ("running", warm), ("running", later))
    window = rounds._observe(farm_with(api), "t", CASE)
    assert (window.rounds, window.seconds) == (20, 10.0)
    assert (window.counted.up_bytes, window.counted.down_bytes, window.counted.rounds) == (100, 300, 10)


def test_an_open_round_is_not_counted():
    unfinished = committed(9, 1.0).model_copy(update={"state": "open", "committed_at": None})
    farm = farm_with(FakeApi(("running", (unfinished, committed(8, 100.0)))))
    assert rounds._newest(farm, "t").number == 8


def test_a_task_that_ended_stops_the_measurement():
    with pytest.raises(BenchmarkError, match="failed: out of luck"):
        rounds._newest(farm_with(FakeApi(("failed", ()))), "t")


def test_a_stalled_task_stops_the_measurement():
    stalled = FakeApi(("running", (committed(5, 100.0),)))
    with pytest.raises(BenchmarkError, match="waiting for luck"):
        rounds._observe(farm_with(stalled), "t", CASE)


def test_a_result_is_compared_with_the_references_in_one_line_of_rounded_json():
    counted = ServerCount(up_bytes=80, down_bytes=90, compute_seconds=1.0, rounds=10)
    window = rounds.Window(rounds=10, seconds=1.23456, wire_bytes=1000, counted=counted)
    beside = References(limit_rounds_per_s=81.0, durable_write_s=0.01, ddp=Ddp(100.0, 0.002))
    line = rounds._compared(CASE, window, 10**8, beside).to_json()
    assert "\n" not in line
    found = json.loads(line)
    assert (found["benchmark"], found["seconds"], found["ratio"], found["ddp_ratio"]) == ("rounds", 1.235, 0.1, 0.081)
    assert (found["up_bytes_per_round"], found["down_bytes_per_round"], found["wire_bytes_per_round"]) == (8, 9, 100)
    assert found["budget_ratio"] == pytest.approx(0.123456 / (5 * 0.002 + 2 * 0.01), rel=1e-3)


def test_a_reference_that_fails_is_a_missing_field_and_not_a_lost_run(monkeypatch, tmp_path, capsys):
    def fails(*_):
        raise BenchmarkError("it aborted")

    monkeypatch.setattr(references, "measure_ddp", fails)
    monkeypatch.setattr(references.limit, "measure", fails)
    found = References.measure(params=100, clients=2, seconds=0.01, folder=tmp_path)
    assert (found.limit_rounds_per_s, found.ddp, found.budget_s) == (None, None, None)
    assert found.durable_write_s is not None
    assert capsys.readouterr().err.count("it aborted") == 2
    counted = ServerCount(up_bytes=80, down_bytes=90, compute_seconds=1.0, rounds=10)
    window = rounds.Window(rounds=10, seconds=1.0, wire_bytes=1000, counted=counted)
    line = json.loads(rounds._compared(CASE, window, 10**8, found).to_json())
    assert line["rounds_per_s"] == 10
    assert [line[name] for name in ("ratio", "ddp_ratio", "all_reduce_s", "budget_ratio")] == [None] * 4


def test_a_disk_without_room_is_told_before_anything_starts(tmp_path):
    huge = rounds.Case(clients=8, params=10**15, mode="weights", seconds=1)
    with pytest.raises(BenchmarkError, match="set TMPDIR to a folder on a larger disk"):
        rounds._check_disk(huge, tmp_path)
    rounds._check_disk(CASE, tmp_path)


def test_few_rounds_of_a_large_model_must_do():
    large = rounds.Case(clients=8, params=250_000_000, mode="weights", seconds=10)
    assert (large.warm_up_rounds, large.fewest_rounds) == (1, 2)
    assert int(large.client_environ["FARM_CLIENT_CACHE_BYTES"]) > 2 * 10**9
    assert CASE.client_environ == {}


def test_the_task_gives_a_gradient_of_the_models_size():
    model = train.build_model({"params": 1000})
    train.loss(model, torch.ones(64, 1)).backward()
    assert model.parts[0].grad.shape == (1000,)


def test_a_large_model_is_no_single_tensor():
    assert train.tensor_sizes(250_000_000) == [10_000_000] * 25
    assert train.tensor_sizes(10_000_001) == [10_000_000, 1]


def test_no_two_parts_of_the_data_give_the_same_update():
    dataset = train.make_dataset({"samples": 512})
    assert len(dataset) == 512
    halves = [torch.stack([dataset[i] for i in half]).mean() for half in (range(0, 512, 2), range(1, 512, 2))]
    assert halves[0] != halves[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
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
    assert 4 * 1000 * 2 < measured["up_bytes_per_round"] < 20_000
    assert 4 * 1000 * 2 < measured["down_bytes_per_round"] < 20_000
    assert 0 < measured["ratio"] < 1
    assert measured["ddp_steps_per_s"] > 1
