"""A task's numbered feeds (events, logs, metrics), read once or until the task ends; and waiting for that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Protocol, TypeVar

from farm_client.sdk.api import FarmApi
from farm_client.sdk.outcome import is_over
from protocol.rest import TaskView

LONG_POLL_SECONDS: Final = 5.0
LONGEST_WAIT_SECONDS: Final = 10.0


class FeedEntry(Protocol):
    """An entry of a feed; ``seq`` grows along the feed."""

    @property
    def seq(self) -> int:
        """The entry's number."""


E = TypeVar("E", bound=FeedEntry)


class Read(Protocol[E]):
    """``FarmApi.events``, ``.logs`` or ``.metrics``."""

    def __call__(self, task_id: str, after: int = 0, wait_seconds: float = 0) -> list[E]:
        """Return the entries numbered above ``after``."""


def read_all(read: Read[E], task_id: str) -> Iterator[E]:
    """Yield what the feed holds now, oldest first."""
    after = 0
    while entries := read(task_id, after=after):
        yield from entries
        after = entries[-1].seq


def follow(api: FarmApi, read: Read[E], task_id: str) -> Iterator[E]:
    """Yield what the feed holds and what comes, until the task is over and the feed is read to its end."""
    after = 0
    while True:
        # Asked before the feed is read: what is written up to the end is then in the feed.
        over = is_over(api.task(task_id).task)
        entries = read(task_id, after=after, wait_seconds=0 if over else LONG_POLL_SECONDS)
        yield from entries
        if entries:
            after = entries[-1].seq
        elif over:
            return


def wait_until_over(api: FarmApi, task_id: str, timeout_seconds: float) -> TaskView:
    """Return the task's view once it is over, or when the time is up."""
    deadline = time.monotonic() + timeout_seconds
    after = 0
    while True:
        task = api.task(task_id).task
        left_seconds = deadline - time.monotonic()
        if is_over(task) or left_seconds <= 0:
            return task
        # An event comes with every change of state, so waiting for events wakes us in time.
        events = api.events(task_id, after=after, wait_seconds=min(LONGEST_WAIT_SECONDS, left_seconds))
        after = events[-1].seq if events else after
