"""What updates of a task look like: its layout, read once from the header of its initial weights, and its codec."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from farm_server.tensor_reader import header_of_file
from protocol.compression import CodecSpec
from protocol.errors import NotFound
from protocol.tasks import TaskSpec
from protocol.tensors import Layout, parse_layout


class BlobPaths(Protocol):
    """The part of the blob store that finds files."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""


class Layouts:
    """Knows what was submitted, and keeps the layouts it was asked for. Safe to ask from any thread."""

    def __init__(self, blobs: BlobPaths) -> None:
        self._blobs = blobs
        self._submitted: dict[str, tuple[str, CodecSpec]] = {}
        self._layouts: dict[str, Layout] = {}

    def add(self, task_id: str, spec: TaskSpec) -> None:
        """Note which blob holds the task's initial weights, and the codec of its updates."""
        self._submitted[task_id] = (spec.initial_weights.digest, spec.recipe.update_codec)

    def drop(self, task_id: str) -> None:
        """Forget the layout of a task that holds nothing in memory; it is read again when needed."""
        self._layouts.pop(task_id, None)

    def of(self, task_id: str) -> Layout:
        """Return the task's layout. Raises: NotFound for an unknown task; MalformedTensors if it can't be read."""
        layout = self._layouts.get(task_id)
        if layout is None:
            weights_digest, _ = self._find(task_id)
            layout = self._layouts[task_id] = layout_of_file(self._blobs.path(weights_digest))
        return layout

    def codec_of(self, task_id: str) -> CodecSpec:
        """Return the codec of the task's updates. Raises: NotFound for an unknown task."""
        return self._find(task_id)[1]

    def _find(self, task_id: str) -> tuple[str, CodecSpec]:
        found = self._submitted.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id}")
        return found


def layout_of_file(path: Path) -> Layout:
    """Return the layout that a weights file defines. Raises: MalformedTensors."""
    return parse_layout(header_of_file(path))
