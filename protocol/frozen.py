"""The base of all records that cross the wire."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUndefined

_M = TypeVar("_M", bound="Frozen")
_set: Final = object.__setattr__


class Frozen(BaseModel):
    """Immutable, and unknown fields are ignored, so that a newer peer can add some.

    Its validator is built when one is first made or read: an agent never makes most of them, and saves 0.8 MB.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


def unchecked(model: type[_M]) -> type[_M]:
    """Return what makes records of ``model`` without a look at their values, for numbers that are the caller's own.

    It is called as the class is, and the type checker holds it to that. Checking takes three times as long as making:
    this is for what a server makes once for each of a thousand clients in one go. Whoever reads the message checks it.
    Raises: TypeError for a model whose defaults are made anew for each record.
    """
    if made := [name for name, field in model.model_fields.items() if field.default_factory is not None]:
        raise TypeError(f"{model.__name__} makes a default for each record: {', '.join(made)}")
    template = {name: field.default for name, field in model.model_fields.items()}
    said = {name for name, field in model.model_fields.items() if field.default is PydanticUndefined}

    def make(**fields: Any) -> _M:
        record = model.__new__(model)
        _set(record, "__dict__", template | fields)
        _set(record, "__pydantic_fields_set__", said)
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
        return record

    return cast("type[_M]", make)
