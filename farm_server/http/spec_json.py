"""A submission's JSON to a ``TaskSpec``, in pieces: 16 MiB of it must not keep the event loop waiting.

Python's threads take turns only between pieces of work: one call that reads a whole document holds all others up for
as long as it takes, a second and more for a data set of many shards. So the shards, which are nearly all of a long
document, are read a few hundred at a time, and what would be much larger read than written is refused by its commas.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final, Never

from pydantic import TypeAdapter, ValidationError

from protocol.errors import InvalidTask
from protocol.tasks import Shard, TaskSpec

MAX_VALUES: Final = 3_000_000
"""Commas and opening brackets: ten for each of 2**18 shards, and what the rest may hold."""
_SHARDS_AT_ONCE: Final = 500
_SHARDS: Final = TypeAdapter(tuple[Shard, ...])


def parse_spec(body: bytes) -> TaskSpec:
    """Return the specification in ``body``. Raises: InvalidTask naming the field that is wrong."""
    values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise InvalidTask(f"the submission holds {values} values, at most {MAX_VALUES} are allowed; use fewer shards")
    document = _document(body)
    try:
        return TaskSpec.model_validate(_with_shards(document))
    except ValidationError as error:
        raise InvalidTask(_first_of(error, ())) from error


def _document(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_hook=_give_way, parse_constant=_refuse)
    except RecursionError:
        raise InvalidTask("the submission is no JSON: lists and maps are too deep inside each other") from None
    except ValueError as error:
        raise InvalidTask(f"the submission is no JSON: {error}") from error


def _give_way(fields: dict[str, Any]) -> dict[str, Any]:
    """Let other threads have their turn: they get it where Python code runs."""
    return fields


def _refuse(name: str) -> Never:
    raise ValueError(f"{name} is no number that JSON knows")


def _with_shards(document: Any) -> Any:
    """Return the document with its shards read, if they are where they should be; pydantic says it if they are not."""
    if not isinstance(document, dict) or not isinstance(dataset := document.get("dataset"), dict):
        return document
    if not isinstance(raw := dataset.get("shards"), list):
        return document
    shards: list[Shard] = []
    for start in range(0, len(raw), _SHARDS_AT_ONCE):
        try:
            shards += _SHARDS.validate_python(raw[start : start + _SHARDS_AT_ONCE])
        except ValidationError as error:
            raise InvalidTask(_first_of(error, ("dataset", "shards"), start)) from error
        time.sleep(0)  # gives the interpreter to whoever waits for it
    return {**document, "dataset": {**dataset, "shards": tuple(shards)}}


def _first_of(error: ValidationError, under: tuple[str, ...], start: int = 0) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    steps = [*under, *first["loc"]]
    if under and isinstance(steps[len(under)], int):
        steps[len(under)] = start + int(steps[len(under)])
    where = ".".join(map(str, steps))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
