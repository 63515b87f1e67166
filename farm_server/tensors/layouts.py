"""What updates of a task look like: its layout, read once from the header of its initial weights, codec and rounds."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import NamedTuple, Protocol

from farm_server.tensors.tensor_reader import header_of_file
from protocol.compression import CodecSpec
from protocol.errors import LayoutMismatch, NotFound
from protocol.inner_state import checked_tree, largest_state_bytes, state_tensors
from protocol.recipe import InnerState
from protocol.secure_aggregation import Bits, is_secure
from protocol.tasks import Split, TaskSpec
from protocol.tensors import Header, Layout, parse_layout


class BlobPaths(Protocol):
    """The part of the blob store that finds files."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""


class StateForms:
    """Which tensors the inner optimizer of a task's clients keeps, as the first states that came have them.

    A state may lack some of them, or bring new ones: moments are made with a parameter's first gradient.
    Safe to use from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._forms: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._total_bytes = 0

    def check(self, header: Header) -> None:
        """See that an update carries a state. Raises: MalformedTensors; LayoutMismatch if it has none."""
        checked_tree(header, self.limit_bytes)

    def agree(self, header: Header) -> None:
        """Take in the tensors of a good state.

        Raises: LayoutMismatch if one has another dtype or shape than before, or all together would be too large.
        """
        tensors = state_tensors(header)
        with self._lock:
            for name, entry in tensors.items():
                known = self._forms.get(name, (entry.dtype, entry.shape))
                if known != (entry.dtype, entry.shape):
                    raise LayoutMismatch(
                        f"{name!r} is {entry.dtype} {list(entry.shape)} in this state of the inner optimizer, and was "
                        f"{known[0]} {list(known[1])}"
                    )
            new = {name: entry for name, entry in tensors.items() if name not in self._forms}
            total_bytes = self._total_bytes + sum(entry.stop - entry.start for entry in new.values())
            if total_bytes > self.limit_bytes:
                raise LayoutMismatch(f"the states of the inner optimizer have over {self.limit_bytes} bytes of tensors")
            self._forms |= {name: (entry.dtype, entry.shape) for name, entry in new.items()}
            self._total_bytes = total_bytes


class _Submitted(NamedTuple):
    weights_digest: str
    codec: CodecSpec
    round_samples: int
    states: StateForms | None
    in_fragments: bool
    masked_bits: Bits | None


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
        carried = recipe.inner_state is InnerState.CARRIED
        states = StateForms(largest_state_bytes(spec.initial_weights.size_bytes)) if carried else None
        self._submitted[task_id] = _Submitted(
            spec.initial_weights.digest,
            recipe.update_codec,
            most,
            states,
            recipe.fragments > 1,
            recipe.secure_bits if is_secure(recipe) else None,
        )

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

    def states_of(self, task_id: str) -> StateForms | None:
        """Return what is known of the states that updates carry; None where they carry none. Raises: NotFound."""
        return self._find(task_id).states

    def round_samples_of(self, task_id: str) -> int:
        """Return the most samples that a round of the task hands out. Raises: NotFound for an unknown task."""
        return self._find(task_id).round_samples

    def masked_bits_of(self, task_id: str) -> Bits | None:
        """Return the bits of a masked number; None where updates come unmasked. Raises: NotFound."""
        return self._find(task_id).masked_bits

    def in_fragments(self, task_id: str) -> bool:
        """Return whether an update may lack what it calls untouched. Raises: NotFound for an unknown task."""
        return self._find(task_id).in_fragments

    def _find(self, task_id: str) -> _Submitted:
        found = self._submitted.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id}")
        return found


def layout_of_file(path: Path) -> Layout:
    """Return the layout that a weights file defines. Raises: MalformedTensors."""
    return parse_layout(header_of_file(path))
