"""What a person may call a task or a client: its id, a unique beginning of the id, or its name.

Several tasks of one name are runs of one thing, and the newest is meant; several clients of one name are several
machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.errors import NotFound
from protocol.rest import ClientView, TaskView

_AN_ID: Final = re.compile("[a-z0-9]{8}")
"""What may be a task's id: an older task may have it, though a newer one is called so."""
_ROUND_DIGITS: Final = 18
"""More are no round, and Python refuses to read thousands of them."""


def find_round(tasks: Iterable[TaskView], reference: str) -> tuple[TaskView, int | None]:
    """Return the task and the round that ``TASK@N`` means; the round is None without ``@N``. Raises: NotFound."""
    task, at, number = reference.rpartition("@")
    if at and number.isdecimal() and len(number) <= _ROUND_DIGITS:
        return find_task(tasks, task), int(number)
    return find_task(tasks, reference), None


def find_task(tasks: Iterable[TaskView], reference: str) -> TaskView:
    """Return the task meant by ``reference``: an id before a name before a beginning of an id.

    ``tasks`` come newest first, and no further than needed. Raises: NotFound if it is none's, or the beginning of
    several ids (which the message lists).
    """
    named: TaskView | None = None
    begun: list[TaskView] = []
    for task in tasks:
        if task.task_id == reference:
            return task
        if task.name == reference:
            named = named or task
            if not _AN_ID.fullmatch(reference):
                break
        if reference and task.task_id.startswith(reference.lower()):
            begun.append(task)
    if named is not None:
        return named
    if len(begun) == 1:
        return begun[0]
    if begun:
        ids = ", ".join(sorted(task.task_id for task in begun))
        raise NotFound(f"{reference!r} is the beginning of several task ids ({ids}): give more of it")
    raise NotFound(f"there is no task {reference!r} on this farm: `farm ls` lists the tasks")


def find_client(clients: Sequence[ClientView], reference: str) -> ClientView:
    """Return the client meant by ``reference``: an id before a name before a beginning of an id.

    Raises: NotFound if it is none's, or several clients' (whose ids the message lists).
    """
    for client in clients:
        if client.client_id == reference:
            return client
    named = [client for client in clients if client.name == reference]
    meant = named or [client for client in clients if reference and client.client_id.startswith(reference)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        ids = ", ".join(sorted(client.client_id for client in meant))
        what = "the name of several clients" if named else "the beginning of several client ids"
        raise NotFound(f"{reference!r} is {what} ({ids}): give an id")
    raise NotFound(f"there is no client {reference!r} on this farm: `farm clients` lists the clients")
