"""What the owner sees of the agent's work: the current task, or the reason why there is none."""

from __future__ import annotations

import time
from typing import Final

from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.status import StatusBoard, WorkView
from protocol.assignments import Assign
from protocol.credit import Credit
from protocol.wording import counted

_NO_WORK: Final = "the farm has no work for this machine now"
_IDLE_AFTER_SECONDS: Final = 3.0
"""Between two rounds a client has nothing to do for a moment; that is no news."""


class Display:
    """Writes lines and the status file; given the newest assignment at each heartbeat."""

    def __init__(self, board: StatusBoard, console: Console) -> None:
        self._board = board
        self._console = console
        self._idle_since = time.monotonic()
        self._upload_waits: str | None = None
        self._slot_waits: str | None = None
        self._lack: str | None = None
        self._rest: str | None = None

    def delivered(self, credit: Credit | None = None) -> None:
        """Count a result that the farm counted; ``credit``: all that it credits this machine with, if it says so."""
        self._board.delivered += 1
        self._board.credit = credit or self._board.credit

    def computed(self, work: WorkView) -> None:
        """Count the samples of an assignment whose executor is done with it."""
        self._board.computed(work)

    def upload_waits(self, reason: str | None) -> None:
        """Show why an update that is to be sent waits for its turn; None when none does."""
        self._upload_waits = reason

    def slot_waits(self, reason: str | None) -> None:
        """Show why a slot waits although its result is ready to be sent; None when none does."""
        self._slot_waits = reason

    def lacks(self, reason: str | None) -> None:
        """Show why this machine can take no work; None when it can again."""
        self._lack = reason
        self._console.tell(reason or "there is room again: going on")

    def rests(self, reason: str | None) -> None:
        """Show why the owner wants nothing done now; None when work is welcome again."""
        self._rest = reason

    def note(self, text: str) -> None:
        """Say something that belongs to no assignment."""
        self._console.tell(text)

    def note_on(self, assign: Assign, text: str) -> None:
        """Say something about an assignment."""
        self._console.tell(text, **_ids(assign))

    def fault_on(self, assign: Assign, error: BaseException) -> None:
        """Show where an assignment ran into a mistake of the agent."""
        self._console.trace(
            f"{assign.task.name}: a mistake in farm-client ended this assignment", error, **_ids(assign)
        )

    def show(self, newest: Assign | None, leaving: bool) -> None:
        """Say what this client does, with the reason where it is nothing."""
        if self._rest is not None:
            self._show_idle(leaving)
        elif newest is not None:
            self._idle_since = time.monotonic()
            self._show_work(newest)
        elif time.monotonic() - self._idle_since >= _IDLE_AFTER_SECONDS:
            self._show_idle(leaving)
        elif self._board.delivered != self._board.status.delivered:
            self._board.show()

    def _show_idle(self, leaving: bool) -> None:
        why = f"not working: {self._rest}" if self._rest else f"waiting: {self._lack or _NO_WORK}"
        doing = self._also("leaving" if leaving else why)
        self._console.tell(doing)
        self._board.show(doing=doing, task="", round=None)

    def _show_work(self, assign: Assign) -> None:
        doing = self._also(f"working on {assign.task.name}")
        progress = f"{doing}, round {assign.round} ({counted(self._board.delivered, 'result')} delivered so far)"
        self._console.keep_telling(doing, progress, **_ids(assign))
        self._board.show(doing=doing, task=assign.task.task_id, round=assign.round)

    def _also(self, doing: str) -> str:
        waits = (("an update waits", self._upload_waits), ("a slot waits", self._slot_waits))
        return "; ".join([doing, *(f"{what}: {reason}" for what, reason in waits if reason)])


def _ids(assign: Assign) -> dict[str, str | int]:
    return {"task": assign.task.task_id, "round": assign.round, "assignment": assign.assignment_id}
