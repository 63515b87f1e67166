"""Going on from a checkpoint of another task, with its code and data as the farm has them: `farm continue TASK`.

What is carried on says ``protocol.continuing``. Nothing is uploaded; the code is fetched and its model built here only
where the recipe now needs an optimizer or a schedule of it that the task before had no use for, or the config changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from farm_client.executor.rehearsal_records import RehearsalReport
from farm_client.sdk.api import FarmApi
from farm_client.sdk.checkpoints import find_best, find_checkpoint
from farm_client.sdk.continued_code import build_again
from farm_client.sdk.errors import first_problem
from farm_client.sdk.submission import OUTER_HAS_ITS_OWN, check_config
from farm_client.sdk.submitter import submitter_here
from farm_client.sdk.task_file import changed_config, laid_over
from protocol.continuing import taken_over
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask
from protocol.features import needed_by, unknown_to
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe, parse_target
from protocol.rest import CheckpointView
from protocol.tasks import MAX_NOTES, BlobRef, Origin, TaskSpec

_MOST_DIGITS: Final = 15


@dataclass(frozen=True)
class Continuation:
    """From where a task goes on, and what changes.

    ``rounds`` is ``"+20"`` for so many more, or how many in all; None leaves the end as it was, for a task that did
    not get there. ``round_number``: from the checkpoint after so many rounds, ``best``: by ``keep_best``; else the
    newest. ``recipe`` are fields of ``protocol.recipe`` that change, ``config`` values that the code gets instead of
    those that it had, and ``assignments`` single ones, as in ``model.width=64``.
    """

    rounds: str | int | None = None
    round_number: int | None = None
    best: bool = False
    recipe: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    assignments: Sequence[str] = ()
    name: str = ""
    submit_token: str | None = None


def continued(api: FarmApi, task_id: str, how: Continuation) -> TaskSpec:
    """Return the submission that goes on from a task's checkpoint; the farm has all that it names.

    Raises: NotFound saying which rounds are kept; InvalidTask; CheckFailed.
    """
    number = find_best(api, task_id, how.round_number) if how.best else how.round_number
    checkpoint = find_checkpoint(api, task_id, number)
    before = api.spec(task_id)
    recipe, notes = _recipe(before.recipe, checkpoint, how)
    config = changed_config(before.config, how.config, how.assignments)
    check_config(config)
    after = _changed(
        before,
        {
            "name": how.name or before.name,
            "submitter": submitter_here(),
            "submit_token": how.submit_token,
            "initial_weights": BlobRef(digest=checkpoint.digest, size_bytes=checkpoint.size_bytes),
            "continues": Origin(task_id=task_id, round=checkpoint.round),
            "config": config,
            "has_scheduler": before.has_scheduler or _has_schedules(before.recipe.outer),
        },
    )
    _refuse_two_schedules(after, before.recipe, recipe, how.recipe)
    has_new_config = after.config != before.config
    if has_new_config or _needs_code(before.recipe, recipe, how.recipe):
        report = build_again(api, after, recipe, has_new_config=has_new_config)
        if recipe.mode is Mode.WEIGHTS:
            after = after.model_copy(update={"has_scheduler": report.has_scheduler})
        elif "outer" not in how.recipe:
            recipe = recipe.model_copy(update={"outer": _optimizer_of(report)})
    if why := contradiction(recipe, before.dataset):
        raise InvalidTask(f"the recipe contradicts itself: {why}")
    after = after.model_copy(update={"recipe": recipe})
    label = f"continues {before.name}, {task_id}@{checkpoint.round}"
    told = (label, *taken_over(before, after).lost, *notes)
    return after.model_copy(update={"notes": told[:MAX_NOTES], "needs": needed_by(after)})


def refuse_older_farm(api: FarmApi, spec: TaskSpec) -> None:
    """Raise InvalidTask if the farm's server would leave out something that the task needs."""
    needed = needed_by(spec)
    if needed and (why := unknown_to(api.farm().features, needed)) is not None:
        raise InvalidTask(why)


def rounds_in_all(said: str | int, before: int) -> int:
    """Return how many rounds ``+20`` or ``60`` are in all, ``before`` of which are trained. Raises: InvalidTask."""
    text = str(said).strip()
    digits = text.removeprefix("+")
    if not digits.isdecimal() or len(digits) > _MOST_DIGITS or not int(digits):
        raise InvalidTask(f"--rounds {text}: write +20 for 20 more rounds, or 60 for 60 in all")
    rounds = before * text.startswith("+") + int(digits)
    if rounds <= before:
        raise InvalidTask(f"--rounds {text}: {before} rounds are trained before: write +{digits} for so many more")
    return rounds


def _recipe(before: Recipe, checkpoint: CheckpointView, how: Continuation) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with its changes, and what there is to say of them."""
    values = before.model_dump()
    notes: tuple[str, ...] = ()
    if how.rounds is not None:
        values |= {"rounds": rounds_in_all(how.rounds, checkpoint.round), "epochs": None}
    elif "epochs" in how.recipe:
        values |= {"rounds": None}
    if before.target is not None and "target" not in how.recipe and _reached(before.target, checkpoint):
        values |= {"target": None}
        notes = (f"the target {before.target} is reached where it begins, and left out",)
    mode = how.recipe.get("mode", before.mode)
    if mode != before.mode:
        values |= {"outer": OuterOptimizer().model_dump()}
        if mode == Mode.GRADIENTS:
            values |= {"inner_state": InnerState.FRESH}
    try:
        return Recipe.model_validate(laid_over(values, how.recipe)), notes
    except ValidationError as error:
        raise InvalidTask(first_problem(error)) from error


def _changed(spec: TaskSpec, changes: Mapping[str, object]) -> TaskSpec:
    """Return the submission with these changes, which come from a command line. Raises: InvalidTask."""
    try:
        return TaskSpec.model_validate({name: getattr(spec, name) for name in TaskSpec.model_fields} | dict(changes))
    except ValidationError as error:
        raise InvalidTask(first_problem(error)) from error


def _reached(target: str, checkpoint: CheckpointView) -> bool:
    metric, sign, bound = parse_target(target)
    value: Any = checkpoint.metrics.get(metric)
    return value is not None and sign * value >= sign * bound


def _has_schedules(outer: OuterOptimizer) -> bool:
    return bool(outer.schedules) or any(group.schedules for group in outer.groups)


def _needs_code(before: Recipe, after: Recipe, changes: Mapping[str, object]) -> bool:
    """Whether the server needs an optimizer of the code that it did not have, or more of its schedules."""
    if after.mode is not Mode.GRADIENTS or "outer" in changes:
        return False
    return before.mode is not Mode.GRADIENTS or _has_schedules(before.outer) or before.schedule != after.schedule


def _refuse_two_schedules(spec: TaskSpec, before: Recipe, recipe: Recipe, changes: Mapping[str, object]) -> None:
    """Raise InvalidTask if a schedule by name would come beside the code's own, or beside an optimizer of the recipe.

    In gradients mode the code is asked, where it is built.
    """
    if recipe.schedule is None:
        return
    if recipe.mode is Mode.GRADIENTS and "outer" in changes:
        raise InvalidTask(OUTER_HAS_ITS_OWN)
    follows_code = spec.has_scheduler and before.schedule is None and "schedule" not in recipe.ignore
    if recipe.mode is Mode.WEIGHTS and follows_code:
        raise InvalidTask("the task follows the scheduler of its code: leave out schedule, or add --ignore schedule")


def _optimizer_of(report: RehearsalReport) -> OuterOptimizer:
    if report.outer is None:
        raise InvalidTask("the code gives the server no optimizer: go on in weights mode")
    return report.outer
