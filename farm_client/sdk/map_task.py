"""A map on a farm, for programs: ``Farm.map`` returns one, and iterating over it gives its outputs in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm_client.sdk.api import FarmApi
from farm_client.sdk.map_results import read_outputs, write_results
from farm_client.sdk.outcome import TaskEnded, TaskOutcome, outcome_of

if TYPE_CHECKING:
    from farm_client.sdk.farm import Task


class MapResults:
    """The outputs of a map's items, in order, each as soon as it and all before it are there.

    Iterating anew begins with the first item again: the farm has them for as long as the task.
    """

    def __init__(self, api: FarmApi, task: Task) -> None:
        self._api = api
        self.task = task
        """The task, with ``view``, ``why``, ``act`` and the rest."""

    def __repr__(self) -> str:
        return f"<MapResults of {self.task.name} ({self.task.id})>"

    def __iter__(self) -> Iterator[Any]:
        """Yield the outputs, an ``ItemError`` in the place of one that was skipped.

        Raises: TaskEnded behind the last one that is there, if the task failed or was cancelled.
        """
        yield from self.from_item(0)
        view = self.task.view()
        if outcome_of(view) in {TaskOutcome.FAILED, TaskOutcome.CANCELLED}:
            raise TaskEnded(view)

    def from_item(self, start: int, *, follow_on: bool = True) -> Iterator[Any]:
        """Yield the outputs from an item on; without ``follow_on`` only what is there now without a gap."""
        return read_outputs(self._api, self.task.id, start, follow=follow_on)

    def save(self, path: str | Path) -> Path:
        """Write all outputs to a ``.jsonl``, ``.npz`` or ``.parquet`` file. Raises: BadOutput; TaskEnded."""
        write_results(iter(self), Path(path))
        return Path(path)
