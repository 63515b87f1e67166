"""What the cache remembers of its blobs beside the files: uses, how long downloads took, and for which tasks they were.

    <root>/uses    the book, as JSON

It is for choosing what to evict, and for `farm-client cache show`, which reads it beside a running agent. Without it
the blobs are as good; so it is not fsynced, and a disk that takes no book is put up with.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from protocol.frozen import Frozen

_SAVE_EVERY_SECONDS: Final = 5.0
_MOST_TASKS: Final = 256
MOST_USERS: Final = 4
"""Tasks that are remembered of one blob: the latest."""


class BlobNote(Frozen):
    """What is known of one blob; see ``Esteem``. ``tasks``: for whom it was used, the latest last."""

    hits: NonNegativeInt = 0
    fetch_seconds: NonNegativeFloat | None = None
    popularity: NonNegativeFloat = 1.0
    base: NonNegativeFloat = 0.0
    tasks: tuple[str, ...] = ()


class TaskNote(Frozen):
    """``warm_seconds``: how long an executor last took to import the task's code and build its model."""

    name: str = ""
    warm_seconds: NonNegativeFloat | None = None


class Notes(Frozen):
    """The book. ``inflation``: the ``L`` of the eviction's rule."""

    inflation: NonNegativeFloat = 0.0
    blobs: dict[str, BlobNote] = Field(default_factory=dict)
    tasks: dict[str, TaskNote] = Field(default_factory=dict)


def read_notes(root: Path) -> Notes:
    """Read the book of the cache in a folder; an empty one where there is none, or a damaged one."""
    try:
        return Notes.model_validate_json(book_file(root).read_bytes())
    except (OSError, ValidationError):
        return Notes()


def book_file(root: Path) -> Path:
    """Return where the book of a cache is."""
    return root / "uses"


class CacheBook:
    """The book of one cache, which its agent writes: at most every five seconds, and at its end."""

    def __init__(self, root: Path) -> None:
        self._file = book_file(root)
        self.read = read_notes(root)
        """As it was found at the start."""
        self.tasks = OrderedDict(self.read.tasks)
        self._saved_at = 0.0

    def name_task(self, task_id: str, name: str) -> None:
        """Remember what a task is called; of many, the latest are."""
        self._note(task_id, self.tasks.get(task_id, TaskNote()).model_copy(update={"name": name}))

    def warmed(self, task_id: str, seconds: float) -> None:
        """Remember how long an executor took to become warm for a task."""
        known = self.tasks.get(task_id, TaskNote())
        self._note(task_id, known.model_copy(update={"warm_seconds": round(seconds, 3)}))

    def is_due(self) -> bool:
        """Return whether the last time that it was saved is long enough ago."""
        return time.monotonic() - self._saved_at >= _SAVE_EVERY_SECONDS

    def save(self, blobs: dict[str, BlobNote], inflation: float) -> None:
        """Write it."""
        self._saved_at = time.monotonic()
        notes = Notes(inflation=inflation, blobs=blobs, tasks=dict(self.tasks))
        unfinished = self._file.with_suffix(".new")
        with suppress(OSError):
            unfinished.write_text(notes.model_dump_json())
            unfinished.replace(self._file)

    def _note(self, task_id: str, note: TaskNote) -> None:
        self.tasks[task_id] = note
        self.tasks.move_to_end(task_id)
        while len(self.tasks) > _MOST_TASKS:
            self.tasks.popitem(last=False)
