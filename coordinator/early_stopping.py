"""When a task ends before its recipe does: no better for a while, good enough, or out of time. Pure rules."""

from __future__ import annotations

import math
from dataclasses import replace

from coordinator.records import TaskRecord
from protocol.recipe import parse_rule, parse_target
from protocol.wording import counted


def evaluated(task: TaskRecord) -> TaskRecord:
    """Return the task with what follows from its newest held-out metrics: its best value, and whether it stops."""
    task = _with_best(task)
    return task if task.stopped else replace(task, stopped=_reached(task) or _no_better(task))


def out_of_time(task: TaskRecord, now: float) -> str | None:
    """Say that the task's time is up, if it is. Seconds count from when a client first worked on it."""
    budget_seconds = task.spec.recipe.max_seconds
    if budget_seconds is None or task.started_at is None or now - task.started_at < budget_seconds:
        return None
    return f"its time is up: {budget_seconds:g} s since it began"


def _with_best(task: TaskRecord) -> TaskRecord:
    recipe = task.spec.recipe
    if recipe.keep_best is None:
        return task
    sign, metric = parse_rule(recipe.keep_best)
    value = task.metrics.get(metric, math.nan)
    if math.isfinite(value) and (task.best_value is None or sign * value > sign * task.best_value):
        return replace(task, best_value=value, stale_evaluations=0)
    return replace(task, stale_evaluations=task.stale_evaluations + 1)


def _no_better(task: TaskRecord) -> str | None:
    recipe = task.spec.recipe
    if recipe.patience is None or recipe.keep_best is None or task.stale_evaluations < recipe.patience:
        return None
    metric = parse_rule(recipe.keep_best)[1]
    best = "" if task.best_value is None else f" than {task.best_value:.4g}"
    return f"{metric} was no better{best} in {counted(task.stale_evaluations, 'evaluation')}"


def _reached(task: TaskRecord) -> str | None:
    if task.spec.recipe.target is None:
        return None
    metric, sign, bound = parse_target(task.spec.recipe.target)
    value = task.metrics.get(metric, math.nan)
    return f"{metric} is {value:.4g}: the target is reached" if sign * value >= sign * bound else None
