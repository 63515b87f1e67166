"""What updates of a task look like: its layout, read once from the header of its initial weights, codec and rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, Protocol

from farm_server.tensors.tensor_reader import header_of_file
from protocol.compression import CodecSpec
from protocol.errors import NotFound
from protocol.tasks import Split, TaskSpec
from protocol.tensors import Layout, parse_layout


class BlobPaths(Protocol):
    """The part of the blob store that finds files."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""


class _Submitted(NamedTuple):
    weights_digest: str
    codec: CodecSpec
    round_samples: int


class Layouts:
    """The layouts of submitted tasks, read when first needed and kept. Safe to ask from any thread."""

    def __init__(self, blobs: BlobPaths) -> None:
        self._blobs = blobs
        self._submitted: dict[str, _Submitted] = {}
        self._layouts: dict[str, Layout] = {}

    def add(self, task_id: str, spec: TaskSpec) -> None:
        """Note which blob holds the task's initial weights, and how its updates come, unless that is known."""
        if task_id in self._submitted:
            return
        recipe = spec.recipe
        handed_out = math.ceil(recipe.round_samples * (1 + recipe.over_provision))
        most = min(handed_out, spec.dataset.samples(Split.TRAIN))
        self._submitted[task_id] = _Submitted(spec.initial_weights.digest, recipe.update_codec, most)

    def drop(self, task_id: str) -> None:
        """Forget a task of which no update will come, until it is added again."""
        self._submitted.pop(task_id, None)
        self._layouts.pop(task_id, None)

    def of(self, task_id: str) -> Layout:
        """Return the task's layout. Raises: NotFound for an unknown task; MalformedTensors if it can't be read."""
        layout = self._layouts.get(task_id)
        if layout is None:
            weights_digest = self._find(task_id).weights_digest
            layout = self._layouts[task_id] = layout_of_file(self._blobs.path(weights_digest))
        return layout

    def codec_of(self, task_id: str) -> CodecSpec:
        """Return the codec of the task's updates. Raises: NotFound for an unknown task."""
        return self._find(task_id).codec

    def round_samples_of(self, task_id: str) -> int:
        """Return the most samples that a round of the task hands out. Raises: NotFound for an unknown task."""
        return self._find(task_id).round_samples

    def _find(self, task_id: str) -> _Submitted:
        found = self._submitted.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id}")
        return found


def layout_of_file(path: Path) -> Layout:
    """Return the layout that a weights file defines. Raises: MalformedTensors."""
    return parse_layout(header_of_file(path))
