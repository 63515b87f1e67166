"""`farm sweep`: what it shows as lines and as envelopes, what it says at the end, and after Ctrl-C."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from farm_client.cli import sweep as cli_sweep
from farm_client.cli.sweep import table
from farm_client.sdk.sweeping.study import TrialState, TrialView
from farm_client.sdk.sweeping.sweep import SweepView

PLAN = '[sweep]\nmetric = "accuracy"\ndirection = "max"\n[space]\nlr = [0.1, 0.2]\n'


def trial(number: int, state: TrialState, *values: float) -> TrialView:
    return TrialView(number, state, {"lr": 0.1 * (number + 1)}, f"task{number}", values, state is TrialState.PRUNED)


def view(*trials: TrialView) -> SweepView:
    return SweepView("lr", "accuracy", "max", 3, trials)


BEGUN = view(trial(0, TrialState.RUNNING, 0.5))
ENDED = view(
    trial(0, TrialState.COMPLETE, 0.5, 0.8), trial(1, TrialState.PRUNED, 0.1), trial(2, TrialState.COMPLETE, 0.7)
)


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Let a sweep have these views, and give what it was asked for."""
    asked = {}
    (tmp_path / "lr.toml").write_text(PLAN)

    def of(*views: SweepView | BaseException):
        def run_sweep(_farm, plan, describe, study, on_change, *, cancels):
            asked.update(plan=plan, study=study, cancels=cancels, submission=describe(["lr=0.5"]))
            for one in views:
                if isinstance(one, BaseException):
                    raise one
                on_change(one)
            return views[-1]

        monkeypatch.setattr(cli_sweep, "run_sweep", run_sweep)
        return asked

    return of


def arguments(tmp_path, *more: str) -> tuple[str, ...]:
    return ("sweep", str(tmp_path / "lr.toml"), str(tmp_path / "train.py"), "--set", "lr=9", "--rounds", "4", *more)


def test_lines_tell_each_change_once_and_the_end_names_the_best(farm, swept, tmp_path):
    asked = swept(BEGUN, BEGUN, ENDED)
    told = farm(*arguments(tmp_path, "--trials", "3"))
    assert told.exit_code == 0
    assert [line.split(":")[0] for line in told.stdout.splitlines()] == [
        "trial 0 running",
        "trial 0 complete",
        "trial 1 pruned",
        "trial 2 complete",
    ]
    assert "2 complete, 1 pruned" in told.stderr
    assert "the best is trial 0, task task0: lr=0.1; 0.8" in told.stderr
    assert "farm pull task0 --best" in told.stderr
    assert "farm continue task0" in told.stderr
    assert asked["submission"].config == {"lr": 0.5}
    assert asked["submission"].recipe.rounds == 4
    assert (asked["plan"].trials, asked["study"].name, asked["cancels"]) == (3, "lr.study", False)


def test_envelopes_have_all_of_it(farm, swept, tmp_path):
    swept(BEGUN, ENDED)
    first, last = farm(*arguments(tmp_path, "--json")).envelopes("sweep")
    assert (first["best"], last["best"]) == (None, 0)
    assert [one["value"] for one in last["trials"]] == [0.8, 0.1, 0.7]


@pytest.mark.parametrize(("flags", "said"), [((), "its trials go on"), (("--cancel",), "its trials are cancelled")])
def test_ctrl_c_says_what_becomes_of_the_trials(farm, swept, tmp_path, flags, said):
    asked = swept(BEGUN, KeyboardInterrupt())
    told = farm(*arguments(tmp_path, *flags))
    assert (told.exit_code, said in told.stderr) == (130, True)
    assert asked["cancels"] == bool(flags)


def test_without_a_complete_trial_it_says_so(farm, swept, tmp_path):
    swept(view(trial(0, TrialState.FAILED)))
    assert "no trial was completed" in farm(*arguments(tmp_path)).stderr


def test_the_table_keeps_the_best_in_sight():
    many = view(trial(0, TrialState.COMPLETE, 0.9), *(trial(n, TrialState.COMPLETE, 0.1) for n in range(1, 40)))
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(table(many))
    lines = captured.get().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["*", "10"]
    assert len(lines) == 32
