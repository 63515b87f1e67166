"""Specifications that an older version took and that this one refuses: they are shown, and not worked on.

One such row must not keep a server from starting, nor a list from being read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from coordinator.lifecycle import TaskState
from coordinator.records import TaskRecord
from protocol.tasks import TaskSpec

_STAND_INS: Final[dict[str, Any]] = {
    "name": "unreadable",
    "dataset": {"kind": "code", "shards": [{"index": 0, "samples": 1}]},
    "recipe": {"rounds": 1},
}
"""For fields that a specification must have; all others have defaults."""


def without_refused_fields(stored: dict[str, Any], error: ValidationError) -> TaskSpec:
    """Return what of a specification can be read. Raises: ValidationError if code or weights can't be."""
    readable = dict(stored)
    for name in {str(problem["loc"][0]) for problem in error.errors(include_input=False) if problem["loc"]}:
        readable.pop(name, None)
        if name in _STAND_INS:
            readable[name] = _STAND_INS[name]
    return TaskSpec.model_validate(readable)


def given_up(task: TaskRecord, error: ValidationError) -> TaskRecord:
    """Return the task as one that nobody works on: with fields left out it would be another task."""
    if task.state is TaskState.COMPLETED:
        return task
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    why = f"this version can't read its specification ({where}: {first['msg']}); submit it again"
    return replace(task, state=TaskState.CANCELLED, error=why)
