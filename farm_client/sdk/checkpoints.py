"""A task's kept checkpoints, and the error for one that is not kept."""

from __future__ import annotations

import math
from collections.abc import Iterable

from farm_client.sdk.api import FarmApi
from protocol.errors import InvalidTask, NotFound
from protocol.rest import CheckpointView


def find_checkpoint(api: FarmApi, task_id: str, round_number: int | None = None) -> CheckpointView:
    """Return the checkpoint after ``round_number`` rounds, or the newest.

    Raises: NotFound saying which rounds are kept.
    """
    kept = api.checkpoints(task_id)
    wanted = [c for c in kept if (c.newest if round_number is None else c.round == round_number)]
    if wanted:
        return wanted[0]
    if not kept:
        raise NotFound(f"task {task_id} has no checkpoint: `farm why {task_id}` says what it waits for")
    rounds = "" if round_number is None else f" of round {round_number}"
    raise NotFound(f"task {task_id} has no checkpoint{rounds}; kept are: {_describe(c.round for c in kept)}")


def best_round(checkpoints: Iterable[CheckpointView], rule: str | None) -> int | None:
    """Return the round that ``keep_best`` (such as ``max:accuracy``) keeps, the newest of equals.

    None without a rule, or when none was measured.
    """
    direction, _, metric = (rule or "").partition(":")
    sign = 1 if direction == "max" else -1
    measured = [
        (sign * c.metrics[metric], c.round) for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))
    ]
    return max(measured)[1] if measured else None


def find_best(api: FarmApi, task_id: str, round_number: int | None = None) -> int:
    """Return the round of the best checkpoint by the task's own rule.

    Raises: InvalidTask if a round is asked for as well, or the task has no rule; NotFound if none was measured.
    """
    if round_number is not None:
        raise InvalidTask("give --best or --round, not both")
    rule = api.task(task_id).spec.recipe.keep_best
    if rule is None:
        raise InvalidTask(f"task {task_id} was submitted without --keep-best: `farm checkpoints {task_id}` lists them")
    best = best_round(api.checkpoints(task_id), rule)
    if best is None:
        raise NotFound(f"{rule} was not measured for any kept checkpoint: `farm checkpoints {task_id}` lists them")
    return best


def _describe(rounds: Iterable[int]) -> str:
    """Return ``0, 5, 18 to 20``."""
    runs: list[list[int]] = []
    for number in sorted(rounds):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs)
    return ", ".join(parts)
