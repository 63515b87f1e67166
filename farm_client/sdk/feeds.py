"""Reading a task's numbered feeds (events, logs, metrics), once or until the task ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, TypeVar

from farm_client.sdk.api import FarmApi
from farm_client.sdk.outcome import is_over

LONG_POLL_SECONDS: Final = 5.0


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
