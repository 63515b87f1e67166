"""A sweep on a farm, from its description to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from farm_client.sdk.submission import Prepared, Submission
from farm_client.sdk.sweeping.plan import SweepPlan
from farm_client.sdk.sweeping.study import Study
from farm_client.sdk.sweeping.sweep import FarmTrials, Sweep, SweepView
from farm_client.sdk.task_file import Given, merge_settings, usual_settings

if TYPE_CHECKING:
    from farm_client.sdk.farm import Farm

Describe = Callable[[list[str]], Submission]
"""Gives the submission of a trial, from settings as ``--set`` takes them."""


def describing(code: Path, settings: str | Path | None, given: Given) -> Describe:
    """Return what describes trials of this code: a settings file, else the usual one, with what is given over it."""
    file = usual_settings(code) if settings is None else Path(settings)
    return lambda some: merge_settings(file, replace(given, assignments=some)).submission(code)


def run_sweep(
    farm: Farm,
    plan: SweepPlan,
    describe: Describe,
    study: Path,
    on_change: Callable[[SweepView], None],
    *,
    cancels: bool = False,
) -> SweepView:
    """Begin a sweep in the folder ``study``, or go on with it, and return how it ended. See ``Farm.sweep``.

    ``cancels``: Ctrl-C cancels the trials that run.
    """

    def send(prepared: Prepared) -> str:
        farm.send(prepared)
        return farm.queue(prepared).task.task_id

    trials = FarmTrials(farm.api, plan, lambda some: replace(describe(some), chosen_for=farm.link), send)
    sweep = Sweep(plan, Study.open(study, plan, time.time()), trials)
    try:
        for view in sweep.run():
            on_change(view)
    except KeyboardInterrupt:
        if cancels:
            sweep.cancel()
        raise
    return sweep.view()
