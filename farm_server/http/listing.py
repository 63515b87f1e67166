"""Lists as JSON, of which one record that can't be written costs no other one its place.

What comes in is bounded by its types, but the ledger may hold what an older version took, and a list that fails for one
record hides all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

import structlog
from fastapi import Response
from pydantic import BaseModel, TypeAdapter

from protocol.bounds import writable

_log = structlog.get_logger(__name__)

_VIEWS: Final[TypeAdapter[Sequence[Any]]] = TypeAdapter(Sequence[Any])
_DEEPEST: Final = 100


def listing(views: Sequence[BaseModel]) -> Response:
    """Return the views as a JSON list; what JSON can't hold of one of them is left out, or written otherwise."""
    return Response(_as_json(views), media_type="application/json")


def written(view: BaseModel) -> Response:
    """Return one view as JSON, as ``listing`` does."""
    return Response(_one(view), media_type="application/json")


def _as_json(views: Sequence[BaseModel]) -> bytes:
    try:
        return _VIEWS.dump_json(views)
    except ValueError:  # pydantic's error for what can't be written is one
        return b"[" + b",".join(map(_one, views)) + b"]"


def _one(view: BaseModel) -> bytes:
    try:
        return view.model_dump_json().encode()
    except ValueError as error:
        _log.warning("a record can't be written as it is", kind=type(view).__name__, error=str(error))
        return json.dumps(_plain(view, _DEEPEST)).encode()


def _plain(value: Any, depth: int) -> Any:
    """Return what JSON can say of a value, lists and maps down to a depth."""
    match value:
        case BaseModel():
            plain: Any = _plain(value.__dict__, depth)
        case float() if not math.isfinite(value):
            plain = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case None | bool() | int() | float():
            plain = value
        case Mapping() if depth:
            plain = {writable(str(key)): _plain(inner, depth - 1) for key, inner in value.items()}
        case list() | tuple() if depth:
            plain = [_plain(inner, depth - 1) for inner in value]
        case str() | Enum():
            plain = writable(str(value))
        case _:
            plain = "…"
    return plain
