"""Artefacts: files that a task's ``on_epoch_end`` leaves, stored as blobs and kept for as long as the task.

The bounds are the executor's, which says what is over them before anything is sent, and the server's, which believes no
client. An artefact has a path of its own inside its epoch's folder, which whoever pulls it can write anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from protocol.bounds import Bytes, Count, FilePath, Id, Text
from protocol.digests import Digest
from protocol.frozen import Frozen
from protocol.wording import counted, sized

MAX_FILES: Final = 64
"""Of one epoch."""
MAX_FILE_BYTES: Final = 64 * 1024**2
MAX_EPOCH_BYTES: Final = 256 * 1024**2
MAX_TASK_BYTES: Final = 4 * 1024**3
"""Once a task has so many bytes, or files, the ends of its later epochs leave none."""
MAX_TASK_FILES: Final = 10_000
_MAX_NAME_CHARS: Final = 200
_REFUSED: Final = frozenset('<>:"|?*\\')
"""What some file system or shell takes for something else."""


def name_fault(name: str) -> str | None:
    """Return why no artefact may have this name; None if it may: a relative path with slashes, of printable text."""
    parts = name.split("/")
    if any(part.startswith(".") or part != part.strip() or part.endswith(".") or not part for part in parts):
        return f"{name!r} is no name of a file: no hidden files, and no dots or blanks at an end"
    if len(name) > _MAX_NAME_CHARS or not name.isprintable() or _REFUSED & set(name):
        return f"{name!r} is no name of a file: at most {_MAX_NAME_CHARS} printable characters, none of {_shown()}"
    return None


def _shown() -> str:
    return " ".join(sorted(_REFUSED))


def _sane(name: str) -> str:
    if (why := name_fault(name)) is not None:
        raise ValueError(why)
    return name


ArtefactName = Annotated[FilePath, AfterValidator(_sane)]


class Artefact(Frozen):
    """A file of one epoch, by its path in the epoch's folder."""

    name: ArtefactName
    digest: Digest
    size_bytes: Bytes


Artefacts = Annotated[tuple[Artefact, ...], Field(max_length=MAX_FILES)]


class ArtefactView(Frozen):
    """An artefact of a task: fetch it from /v1/blobs. ``epoch`` counts from 0."""

    epoch: Count
    name: ArtefactName
    digest: Digest
    size_bytes: Bytes


class ArtefactList(Frozen):
    """GET /v1/tasks/{id}/artefacts: by epoch and name. ``error``: why the newest end of an epoch that failed did."""

    task_id: Id
    artefacts: tuple[ArtefactView, ...] = Field(default=(), max_length=MAX_TASK_FILES + MAX_FILES)
    error: Text | None = None


def bounds_fault(files: Iterable[tuple[str, int]]) -> str | None:
    """Return why these files of one epoch, (name, size in bytes), can't be its artefacts; None if they can."""
    sizes = dict(files)
    if len(sizes) > MAX_FILES:
        return f"it left {counted(len(sizes), 'file')}, and {MAX_FILES} are the most of an epoch"
    if (why := next(filter(None, map(name_fault, sizes)), None)) is not None:
        return why
    if len({name.casefold() for name in sizes}) < len(sizes):
        return "two of its files have names that differ in upper and lower case alone"
    largest = max(sizes, key=sizes.__getitem__, default="")
    if sizes and sizes[largest] > MAX_FILE_BYTES:
        return f"{largest} has {sized(sizes[largest])}, and {sized(MAX_FILE_BYTES)} are the most of a file"
    if sum(sizes.values()) > MAX_EPOCH_BYTES:
        return f"it left {sized(sum(sizes.values()))}, and {sized(MAX_EPOCH_BYTES)} are the most of an epoch"
    return None
