"""Which tasks were running when the agent crashed: one that crashed it twice is not begun a third time.

    <home>/started/<digest of the task's id>.json

A mark is there while a job of the task is at work, and is removed when the job ends in whatever way. One that a life of
the agent finds at its start was left by a life that ended in the midst of such a job: killed by it, or by chance. So
once counts for nothing; after the second time in a row the task's jobs are handed back for a minute, after each
further one for twice as long, up to an hour: a machine that was only unlucky is soon of use again. A snapshot
that a job keeps counts the lives anew: the next one begins behind what ended this one. Nothing is fsynced: what a
process has written outlives the process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from farm_client.agent.errors import EndsAgent
from protocol.digests import digest_bytes
from protocol.frozen import Frozen
from protocol.retry import RetryPolicy

MAX_ENDS: Final = 2
_SHUN: Final = RetryPolicy(first_seconds=60.0, longest_seconds=3600.0)
"""How long a task is left alone after ``MAX_ENDS`` lives, and after each one more."""
_REMEMBERED_SECONDS: Final = 7200.0


class Mark(Frozen):
    """``ends``: how many lives in a row ended in the midst of this task's jobs. ``written_at`` in Unix seconds."""

    task_id: str
    ends: int = Field(default=0, ge=0)
    at_work: bool = False
    written_at: float


class StartMarks:
    """The marks of one home. A disk that takes no mark is put up with: then the next life knows nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends: dict[str, int] = {}
        self._shunned_until: dict[str, float] = {}
        self._jobs: Counter[str] = Counter()
        self._keeps = False
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                self._take_in(path)

    def check(self, task_id: str) -> None:
        """Raises: EndsAgent if the last lives of this agent ended in the midst of this task's jobs, not long ago."""
        if time.time() < self._shunned_until.get(task_id, 0.0):
            raise EndsAgent

    @contextmanager
    def at_work(self, task_id: str) -> Iterator[None]:
        """Mark the task for as long as a job of it is at work. The end of the job, however it ends, clears the task."""
        self._jobs[task_id] += 1
        if self._jobs[task_id] == 1:
            self._write(task_id, at_work=True)
        try:
            yield
        finally:
            self._jobs[task_id] -= 1
            if not self._keeps:
                self._clear(task_id)

    def got_on(self, task_id: str) -> None:
        """A job of the task kept a snapshot: what ended former lives of the agent is behind it, by chance or not."""
        if self._jobs[task_id] and self._ends.pop(task_id, 0):
            self._write(task_id, at_work=True)

    def keep(self) -> None:
        """The agent ends by a mistake of its own: what is at work now may be the cause, so its marks stay."""
        self._keeps = True

    def _clear(self, task_id: str) -> None:
        self._ends.pop(task_id, None)
        self._shunned_until.pop(task_id, None)
        if not self._jobs[task_id]:
            del self._jobs[task_id]
            with suppress(OSError):
                self._path(task_id).unlink(missing_ok=True)

    def _take_in(self, path: Path) -> None:
        mark = _read(path)
        if mark is None or abs(time.time() - mark.written_at) > _REMEMBERED_SECONDS:
            path.unlink(missing_ok=True)
            return
        ends = self._ends[mark.task_id] = mark.ends + mark.at_work
        since = time.time() if mark.at_work else mark.written_at
        if ends >= MAX_ENDS:
            self._shunned_until[mark.task_id] = since + _SHUN.bound_seconds(ends - MAX_ENDS + 1)
        if mark.at_work:
            self._write(mark.task_id, at_work=False)

    def _write(self, task_id: str, *, at_work: bool) -> None:
        mark = Mark(task_id=task_id, ends=self._ends.get(task_id, 0), at_work=at_work, written_at=time.time())
        with suppress(OSError):
            self._path(task_id).write_text(mark.model_dump_json())

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{digest_bytes(task_id.encode())[:32]}.json"


def _read(path: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
