"""The quality benchmark's table: each cell once, whatever fails; and one training on a real farm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import quality_grid
from benchmarks.farm import BenchmarkError
from benchmarks.quality import PlainLosses, Quality, Run
from benchmarks.quality_grid import key_of, measured_in, runs_of, summaries, sweep

PLAIN = PlainLosses(0.5, 0.4, 0.6)


def quality(run: Run, ratio: float = 1.0) -> Quality:
    plain = PLAIN.mean
    where = {"model": run.model, "mode": run.mode, "clients": run.clients, "seed": run.seed}
    return Quality("quality", **where, loss=ratio * plain, plain_loss=plain, plain_low=0.4, plain_high=0.6, ratio=ratio,
                   trained_in="gradients")  # fmt: skip


class FakeFarms:
    """In the place of farms: notes which were started and ended, and how many ran at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.broken = broken
        self.started: list[int] = []
        self.running = self.most_running = 0
        self.plain: list[tuple[str, int]] = []
        monkeypatch.setattr(quality_grid, "running_farm", self.farm)
        monkeypatch.setattr(quality_grid, "measure", self.measure)
        monkeypatch.setattr(quality_grid, "_plain_of", self.plain_of)

    @contextmanager
    def farm(self, clients: int, folder: Path, environ: dict[str, str]) -> Iterator[SimpleNamespace]:
        self.started.append(clients)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            yield SimpleNamespace(clients=clients)
        finally:
            self.running -= 1

    def plain_of(self, runs: list[Run], known: list[Quality], jobs: int) -> dict[tuple[str, int], PlainLosses]:
        return {(run.model, run.seed): PLAIN for run in runs}

    def measure(self, farm: SimpleNamespace, task: object, run: Run, plain: PlainLosses, folder: Path) -> Quality:
        assert farm.clients == run.clients
        if run.model == self.broken:
            raise BenchmarkError("it does not end")
        return quality(run)


GRID = runs_of(["gpt", "lstm"], ["default", "weights"], [1, 2], range(3), 6)


def test_a_cell_of_every_combination_and_none_twice():
    assert len(GRID) == len({key_of(run) for run in GRID}) == 2 * 2 * 2 * 3
    assert [run.clients for run in GRID] == sorted(run.clients for run in GRID)


def test_one_job_starts_a_farm_for_each_number_of_clients(monkeypatch):
    farms = FakeFarms(monkeypatch)
    found = list(sweep(GRID, [], jobs=1))
    assert [key_of(cell) for cell in found] == [key_of(run) for run in GRID]
    assert (farms.started, farms.running) == ([1, 2], 0)


def test_several_jobs_measure_everything_once_and_end_their_farms(monkeypatch):
    farms = FakeFarms(monkeypatch)
    found = list(sweep(GRID, [], jobs=4))
    assert sorted(map(key_of, found)) == sorted(map(key_of, GRID))
    assert farms.running == 0
    assert farms.most_running <= 4


def test_what_is_known_is_not_measured_again(monkeypatch):
    farms = FakeFarms(monkeypatch)
    known = [quality(run) for run in GRID[1:]]
    assert list(map(key_of, sweep(GRID, known, jobs=1))) == [key_of(GRID[0])]
    assert farms.started == [GRID[0].clients]
    assert list(sweep(GRID, [*known, quality(GRID[0])], jobs=1)) == []
    assert len(farms.started) == 1


def test_a_training_that_fails_costs_no_other_one(monkeypatch, capsys):
    farms = FakeFarms(monkeypatch, broken="gpt")
    found: list[Quality] = []
    with pytest.raises(BenchmarkError, match="12 of 24"):
        found.extend(sweep(GRID, [], jobs=1))
    assert capsys.readouterr().err.count("it does not end") == 12
    assert farms.running == 0


def test_whoever_stops_reading_ends_the_farms(monkeypatch):
    farms = FakeFarms(monkeypatch)
    reading = sweep(GRID, [], jobs=1)
    next(reading)
    reading.close()
    assert farms.running == 0


def test_a_plain_loss_beside_a_known_farms_is_not_trained_again():
    known = [quality(Run("gpt", "weights", 8, 1))]
    assert quality_grid._plain_of([Run("gpt", "default", 1, 1)], known, jobs=1) == {("gpt", 1): PLAIN}


def test_a_file_is_read_back_but_for_what_a_kill_cut(tmp_path):
    path = tmp_path / "out.jsonl"
    assert measured_in(path) == []
    whole = quality(GRID[0], 0.9)
    lines = [json.dumps({"benchmark": "machine", "cpus": 2}), whole.to_json(), quality(GRID[1]).to_json()[:40]]
    path.write_text("\n".join(lines))
    assert measured_in(path) == [whole]


def test_a_summary_is_the_geometric_mean_and_the_worst():
    cells = [quality(run, ratio) for run, ratio in zip(GRID[:3:2], (0.5, 2.0), strict=True)]
    (found,) = summaries(cells)
    assert (found.model, found.mode, found.clients, found.seeds) == ("gpt", "default", 1, 2)
    assert (found.mean_ratio, found.worst_ratio) == (pytest.approx(1.0), 2.0)
    assert not summaries([])
    assert math.isclose(summaries([*cells, quality(GRID[4], 1.0)])[0].mean_ratio, 1.0)


def test_the_default_on_a_real_farm_is_the_plain_loops_model():
    (found,) = sweep([Run("lstm", "default", 2, 0, epochs=1)], [], jobs=1)
    assert found.trained_in == "gradients"
    assert found.ratio < 1.05
