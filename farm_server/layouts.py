"""Each task's tensor layout, read once from the header of its initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from farm_server.tensor_reader import header_of_file
from protocol.errors import NotFound
from protocol.tensors import Layout, parse_layout


class BlobPaths(Protocol):
    """The part of the blob store that finds files."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""


class Layouts:
    """Knows which weights define which task, and keeps the layouts it was asked for. Safe to ask from any thread."""

    def __init__(self, blobs: BlobPaths) -> None:
        self._blobs = blobs
        self._weights: dict[str, str] = {}
        self._layouts: dict[str, Layout] = {}

    def add(self, task_id: str, weights_digest: str) -> None:
        """Note which blob holds the task's initial weights."""
        self._weights[task_id] = weights_digest

    def drop(self, task_id: str) -> None:
        """Forget the layout of a task that holds nothing in memory; it is read again when needed."""
        self._layouts.pop(task_id, None)

    def of(self, task_id: str) -> Layout:
        """Return the task's layout. Raises: NotFound for an unknown task; MalformedTensors if it can't be read."""
        layout = self._layouts.get(task_id)
        if layout is None:
            if task_id not in self._weights:
                raise NotFound(f"there is no task {task_id}")
            layout = self._layouts[task_id] = layout_of_file(self._blobs.path(self._weights[task_id]))
        return layout


def layout_of_file(path: Path) -> Layout:
    """Return the layout that a weights file defines. Raises: MalformedTensors."""
    return parse_layout(header_of_file(path))
