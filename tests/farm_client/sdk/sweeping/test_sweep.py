"""Sweeps over a farm from memory: trials, those given up, the best one; and going on after a crash at any step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from farm_client.sdk.outcome import TaskOutcome
from farm_client.sdk.sweeping.plan import PrunerName, Range, SamplerName, SweepPlan, assignment, read_plan
from farm_client.sdk.sweeping.study import Study, TrialState
from farm_client.sdk.sweeping.sweep import Sweep, SweepView
from protocol.errors import Conflict, InvalidTask

GRID = SweepPlan(
    name="s",
    metric="accuracy",
    direction="max",
    sampler=SamplerName.GRID,
    pruner=PrunerName.NONE,
    space={"lr": (0.1, 0.2), "width": (1, 2)},
)


class Crash(Exception):
    """The process ends here."""


class MemoryFarm:
    """Tasks that evaluate once at each look: ``lr`` and more of it each time, for three evaluations."""

    def __init__(self, last: int = 3) -> None:
        self.tasks: dict[str, dict[str, object]] = {}
        self.by_token: dict[str, str] = {}
        self.looks: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.calls = 0
        self.crash_at: int | None = None
        self.most_open = 0
        self.last = last

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.crash_at:
            raise Crash

    def submit(self, settings: Mapping[str, object], name: str, token: str) -> str:
        self._step()
        if token not in self.by_token:
            self.by_token[token] = f"t{len(self.tasks)}"
            self.tasks[self.by_token[token]] = dict(settings)
            self.most_open = max(self.most_open, sum(self.ended(one) is None for one in self.tasks))
        self._step()  # the task is there, and nobody has written it down
        return self.by_token[token]

    def evaluations(self, task_id: str) -> list[float]:
        self._step()
        count = self.looks[task_id] = min(self.looks.get(task_id, 0) + 1, self.last)
        return [float(self.tasks[task_id]["lr"]) * (n + 1) for n in range(count)]

    def ended(self, task_id: str) -> TaskOutcome | None:
        if task_id in self.cancelled:
            return TaskOutcome.CANCELLED
        return TaskOutcome.COMPLETED if self.looks.get(task_id, 0) >= self.last else None

    def cancel(self, task_id: str) -> None:
        self._step()
        self.cancelled.append(task_id)


def run(plan: SweepPlan, farm: MemoryFarm, folder: Path, clock: Callable[[], float] = lambda: 0.0) -> SweepView:
    sweep = Sweep(plan, Study.open(folder, plan, 0.0), farm, clock)
    for _ in sweep.run(pause=lambda _seconds: None):
        pass
    return sweep.view()


def test_a_grid_has_each_combination_once_and_names_the_best(tmp_path):
    farm = MemoryFarm()
    view = run(GRID.model_copy(update={"at_once": 2}), farm, tmp_path)
    assert [dict(trial.settings) for trial in view.trials] == list(GRID.combinations())
    assert {trial.state for trial in view.trials} == {TrialState.COMPLETE}
    assert farm.most_open == 2
    assert view.best is not None
    assert (view.best.settings["lr"], view.best.best("max")) == (0.2, pytest.approx(0.6))
    assert view.record()["best"] == view.best.number


@pytest.mark.parametrize("crash_at", range(1, 19))
def test_a_sweep_that_crashed_anywhere_goes_on_and_submits_nothing_twice(tmp_path, crash_at):
    farm = MemoryFarm()
    farm.crash_at = crash_at
    with pytest.raises(Crash):
        run(GRID, farm, tmp_path)
    view = run(GRID, farm, tmp_path)
    assert len(farm.tasks) == 4
    assert sorted(trial.task_id or "" for trial in view.trials) == ["t0", "t1", "t2", "t3"]
    assert [farm.tasks[trial.task_id or ""] for trial in view.trials] == [dict(trial.settings) for trial in view.trials]
    assert all(trial.state is TrialState.COMPLETE and len(trial.values) == 3 for trial in view.trials)


def test_trials_that_do_badly_are_cancelled_also_after_a_crash_before_it(tmp_path):
    plan = SweepPlan(
        metric="accuracy",
        direction="max",
        sampler=SamplerName.GRID,
        pruner=PrunerName.MEDIAN,
        startup=1,
        at_once=1,
        space={"lr": (0.5, 0.1, 0.6)},
    )
    farm = MemoryFarm()
    view = run(plan, farm, tmp_path / "one")
    assert [trial.state for trial in view.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert farm.cancelled == ["t1"]
    calls_until_cancel = next(n for n in range(1, farm.calls + 1) if self_crashes(plan, tmp_path / str(n), n))
    assert calls_until_cancel


def self_crashes(plan: SweepPlan, folder: Path, crash_at: int) -> bool:
    """Crash at a call; whether that was the cancelling. Whatever it was, the next run ends as without it."""
    farm = MemoryFarm()
    farm.crash_at = crash_at
    with pytest.raises(Crash):
        run(plan, farm, folder)
    was_cancelling = any(trial.is_being_pruned for trial in Study.open(folder, plan, 0.0).trials())
    view = run(plan, farm, folder)
    assert [trial.state for trial in view.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert farm.cancelled == ["t1"]
    return was_cancelling


def test_halving_ends_trials_before_their_end(tmp_path):
    plan = SweepPlan(
        metric="accuracy",
        direction="max",
        sampler=SamplerName.GRID,
        pruner=PrunerName.HALVING,
        reduction=2,
        at_once=1,
        space={"lr": (0.9, 0.1, 0.2, 0.3)},
    )
    farm = MemoryFarm(last=9)
    view = run(plan, farm, tmp_path)
    assert view.best is not None
    assert view.best.settings["lr"] == 0.9
    assert [trial.state for trial in view.trials][1:] == [TrialState.PRUNED] * 3


def test_tpe_asks_within_the_space_and_ends_with_its_budget(tmp_path):
    space = {"lr": Range(low=0.01, high=1.0, log=True), "width": Range(low=1, high=8), "kind": ("a", "b")}
    plan = SweepPlan(metric="accuracy", direction="max", trials=6, pruner=PrunerName.NONE, space=space)
    view = run(plan, MemoryFarm(), tmp_path / "one")
    assert len(view.trials) == 6
    for trial in view.trials:
        assert 0.01 <= float(trial.settings["lr"]) <= 1
        assert trial.settings["width"] in range(1, 9)
        assert trial.settings["kind"] in {"a", "b"}
    hours = iter([0.0, 0.0, 0.0, *[9.0] * 50])
    late = run(plan.model_copy(update={"max_seconds": 5.0}), MemoryFarm(), tmp_path / "two", lambda: next(hours))
    assert len(late.trials) < 6


def test_a_folder_keeps_one_sweep(tmp_path):
    run(GRID, MemoryFarm(), tmp_path)
    with pytest.raises(Conflict, match="another folder"):
        run(GRID.model_copy(update={"metric": "loss"}), MemoryFarm(), tmp_path)


def test_cancelling_ends_what_runs(tmp_path):
    farm = MemoryFarm()
    sweep = Sweep(GRID, Study.open(tmp_path, GRID, 0.0), farm)
    next(sweep.run(pause=lambda _: None))
    sweep.cancel()
    assert farm.cancelled == ["t0", "t1"]
    assert {trial.state for trial in sweep.view().trials} == {TrialState.FAILED}


FILE = """
[sweep]
metric = "accuracy"
direction = "max"
[space]
lr = { low = 0.01, high = 0.3, log = true }
width = [8, 16]
[space.recipe]
round_samples = [256, 512]
outer.options.lr = { low = 0.5, high = 1.0 }
"""


def test_a_sweeps_file(tmp_path):
    (tmp_path / "lr.toml").write_text(FILE)
    plan = read_plan(tmp_path / "lr.toml", {"trials": 3})
    assert (plan.name, plan.most_trials, plan.at_once) == ("lr", 3, 2)
    assert list(plan.space) == ["lr", "width", "recipe.round_samples", "recipe.outer.options.lr"]
    assert [assignment(*one) for one in (("lr", 1e-05), ("a", "x y"), ("b", True))] == ["lr=1e-05", 'a="x y"', "b=true"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sweep", "is not TOML"),
        ("[task]\n", "not 'task'"),
        ("sweep = 1\n", "as tables"),
        ("[space]\n", "space"),
        ("[space]\nlr = []\n", "no value to try"),
        ("[space]\nlr = { low = 2, high = 1 }\n", "low must be less"),
        ("[space]\nlr = { low = 0.0, high = 1, log = true }\n", "log takes a low over 0"),
        ('[sweep]\nsampler = "grid"\n[space]\nlr = { low = 0.0, high = 1 }\n', "list its values"),
        ('[sweep]\ndirection = "up"\n[space]\nlr = [1]\n', "direction"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InvalidTask, match=said):
        read_plan(tmp_path / "s.toml")
    with pytest.raises(InvalidTask, match="cannot be read"):
        read_plan(tmp_path)
