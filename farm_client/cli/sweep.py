"""Many tasks that differ in a few settings, to find the best: `farm sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape

from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.cli.submit import describe_submission
from farm_client.cli.submit_options import SubmitOptions
from farm_client.sdk.farm import Farm
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.submission import Submission
from farm_client.sdk.sweeping.plan import Value, read_plan
from farm_client.sdk.sweeping.running import run_sweep
from farm_client.sdk.sweeping.study import TrialState, TrialView
from farm_client.sdk.sweeping.sweep import SweepView
from farm_client.sdk.watching.formatting import NOTHING, format_value
from farm_client.sdk.watching.tables import FittingTable

SHOWN_TRIALS = 30


def sweep(
    invocation: Invocation,
    plan_file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A TOML file: [sweep] and [space].")],
    options: SubmitOptions,
    *,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="DIR", help="Where it is written down; else SWEEP.study beside it."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="So many in all.")] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, help="So many at a time.")] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Ctrl-C cancels the trials that run; else they go on.")
    ] = False,
) -> None:
    """Search the best settings: each trial is a task; those that do badly are cancelled; the same command goes on.

    Options are those of `farm submit`; a trial's settings win over them.
    """
    changes = {name: value for name, value in (("trials", trials), ("at_once", at_once)) if value is not None}
    plan = read_plan(plan_file, changes)
    folder = plan_file.with_suffix(".study") if study is None else study

    def describe(assignments: list[str]) -> Submission:
        return describe_submission(replace(options, set_values=[*(options.set_values or ()), *assignments]))

    with invocation.api(RETRY_SECONDS) as api, _showing(invocation.out) as show:
        try:
            last = run_sweep(Farm.over(api), plan, describe, folder, show, cancels=cancel)
        except KeyboardInterrupt:
            left = "its trials are cancelled" if cancel else "its trials go on"
            invocation.out.say(f"[dim]{left}; the same command goes on with the sweep[/]")
            raise
    _tell_best(last, invocation.out)


@contextmanager
def _showing(out: Output) -> Iterator[Callable[[SweepView], None]]:
    """Give what shows how a sweep stands, where it changed: a table that is redrawn, lines, or envelopes."""
    if out.live:
        with Live(console=out.results, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda view: live.update(table(view), refresh=True)
        return
    seen: dict[int, TrialView] = {}

    def show(view: SweepView) -> None:
        if (now := {trial.number: trial for trial in view.trials}) != seen:
            _tell_changes(view, seen, out)
            seen.update(now)

    yield show


def _tell_changes(view: SweepView, known: Mapping[int, TrialView], out: Output) -> None:
    if out.as_json:
        out.emit(OutputKind.SWEEP, view.record())
        return
    for trial in view.trials:
        if known.get(trial.number) != trial:
            out.results.print(
                f"trial {trial.number} {trial.state}: {_settings(trial)}; {_value(trial, view)}", markup=False
            )


def table(view: SweepView) -> FittingTable:
    """Draw the newest trials and the best: its settings, state and best evaluation."""
    best = view.best
    shown = view.trials[-SHOWN_TRIALS:]
    if best is not None and best not in shown:
        shown = (best, *shown)
    drawn = FittingTable("trial", "task", "state", f"best {view.metric}", "evaluations", "settings")
    for trial in shown:
        mark = "* " if trial == best else ""
        drawn.add_row(
            f"{mark}{trial.number}",
            trial.task_id or NOTHING,
            trial.state,
            _value(trial, view),
            str(len(trial.values)),
            _settings(trial),
        )
    return drawn


def _value(trial: TrialView, view: SweepView) -> str:
    return format_value(trial.best(view.direction))


def _settings(trial: TrialView) -> str:
    return "  ".join(f"{key}={_shown(value)}" for key, value in trial.settings.items())


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tell_best(view: SweepView, out: Output) -> None:
    counts = {state: sum(trial.state is state for trial in view.trials) for state in TrialState}
    out.say(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    best = view.best
    if best is None:
        out.say("no trial was completed: `farm logs TASK` says why one failed")
        return
    out.say(f"the best is trial {best.number}, task {best.task_id}: {escape(_settings(best))}; {_value(best, view)}")
    out.say(f"  farm pull {best.task_id} --best -o model.safetensors     fetch its model")
    out.say(f"  farm continue {best.task_id} --rounds +20                train it on")
