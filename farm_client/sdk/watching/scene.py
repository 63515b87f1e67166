"""What `farm watch` shows at one moment, gathered from the farm again and again until the task is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from farm_client.sdk.api import FarmApi
from farm_client.sdk.feeds import read_all
from farm_client.sdk.outcome import is_over
from farm_client.sdk.retrying import AWAY, RetryWhileAway
from protocol.rest import ClientView, EventView, TaskDetail

SHORTEST_STEP_SECONDS: Final = 0.25
"""Farms commit up to a hundred rounds a second; people read four pictures."""
LONG_POLL_SECONDS: Final = 1.0
KEPT_EVENTS: Final = 200


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment. ``fresh`` are the events since the last scene, ``recent`` the newest of all; oldest first."""

    detail: TaskDetail
    clients: tuple[ClientView, ...]
    fresh: tuple[EventView, ...]
    recent: tuple[EventView, ...]
    losses: tuple[float, ...]
    """The loss of each committed round seen so far."""
    absent: str | None = None
    """Why the farm cannot be asked now; the rest is then what was known before."""


def scenes(api: FarmApi, task_id: str) -> Iterator[Scene]:
    """Yield a scene at once, then one after each change (or each second), the last one when the task is over.

    Raises: FarmUnreachable when the farm stays away for longer than the API tries again; NotFound.
    """
    view = _View(api, task_id)
    scene = view.look(wait_seconds=0)
    while True:
        yield scene
        if is_over(scene.detail.task):
            return
        began = time.monotonic()
        scene = yield from _look_while_away(view, scene, api.retry)
        time.sleep(max(0.0, SHORTEST_STEP_SECONDS - (time.monotonic() - began)))


def _look_while_away(view: _View, last: Scene, retry: RetryWhileAway) -> Generator[Scene, None, Scene]:
    """Return the next scene; while the farm is away, yield the last one with the reason."""
    with retry.suspended():
        while True:
            try:
                return view.look(LONG_POLL_SECONDS)
            except AWAY as error:
                retry.failed(error)
                yield Scene(last.detail, last.clients, (), last.recent, last.losses, absent=error.message)
                time.sleep(LONG_POLL_SECONDS)


class _View:
    """Remembers what one look must hand to the next: the place in the event feed, and the losses."""

    def __init__(self, api: FarmApi, task_id: str) -> None:
        self._api = api
        self._task_id = task_id
        self._recent: deque[EventView] = deque(maxlen=KEPT_EVENTS)
        self._losses: dict[int, float] = {}

    def look(self, wait_seconds: float) -> Scene:
        """Ask the farm; wait up to ``wait_seconds`` for something to happen."""
        fresh = self._new_events(wait_seconds)
        self._recent.extend(fresh)
        detail = self._api.task(self._task_id)
        for view in detail.rounds:
            if view.loss is not None:
                self._losses[view.number] = view.loss
        losses = tuple(loss for _, loss in sorted(self._losses.items()))
        return Scene(detail, tuple(self._api.clients()), tuple(fresh), tuple(self._recent), losses)

    def _new_events(self, wait_seconds: float) -> list[EventView]:
        if not self._recent:
            return list(read_all(self._api.events, self._task_id))
        return self._api.events(self._task_id, after=self._recent[-1].seq, wait_seconds=wait_seconds)
