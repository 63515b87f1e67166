"""Sanitizes records from a farm for the terminal: every text becomes one line without control characters."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from protocol.terminal_text import one_line


def tidied(value: Any) -> Any:
    """Return a record, or a list or dict of such, with the texts in it as ``one_line`` returns them."""
    if type(value) is str:
        return one_line(value)
    if isinstance(value, BaseModel):
        return _tidied_record(value)
    if isinstance(value, dict):
        return {tidied(key): tidied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(tidied, value))
    return value


def _tidied_record(record: BaseModel) -> BaseModel:
    fields = {name: (value, tidied(value)) for name, value in record}
    changed = {name: tidy for name, (raw, tidy) in fields.items() if tidy is not raw and tidy != raw}
    return record.model_copy(update=changed) if changed else record
