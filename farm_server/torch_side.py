"""The door to everything that needs torch, opened late: importing torch takes seconds that a start should not cost.

These are the only imports inside functions; the first call of any of them waits for torch.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from protocol.compression import CodecSpec
from protocol.recipe import OuterOptimizer, Recipe
from protocol.tensors import Layout
from storage.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from types import ModuleType

    from farm_server.task_tensors import TaskTensors
    from protocol.codecs.checking import BadNumbers

_log = structlog.get_logger(__name__)


class TorchSide:
    """Imports torch once, on whichever thread needs it first."""

    def __init__(self, torch_threads: int) -> None:
        self._torch_threads = torch_threads
        self._warm = threading.Event()
        self._lock = threading.Lock()

    @property
    def is_warm(self) -> bool:
        """Whether no call has to wait for the import."""
        return self._warm.is_set()

    def warm_up(self) -> None:
        """Import torch ahead of need. A failure shows again when torch is needed."""
        try:
            self._ready()
        except ImportError as error:
            _log.error("torch can't be imported; no task will train", error=str(error))

    def bad_tensor(self, update: bytes | Path, layout: Layout, codec: CodecSpec, samples: int) -> BadNumbers | None:
        """Return a stored tensor of an update whose numbers can't be summed over a round of ``samples``, or None.

        Raises: MalformedTensors if what is stored can't be decoded.
        """
        self._ready()
        from farm_server.task_tensors import bad_tensor  # noqa: PLC0415

        return bad_tensor(update, layout, codec, samples)

    def check_outer_optimizer(self, spec: OuterOptimizer, layout: Layout) -> None:
        """Check that the optimizer can be built for the layout. Raises: InvalidTask."""
        self._ready()
        from coordinator.outer_optimizer import check_outer_optimizer  # noqa: PLC0415

        check_outer_optimizer(spec, layout)

    def open_task(self, recipe: Recipe, files: CheckpointFiles) -> TaskTensors:
        """Return a task's tensors, ready for a round. Raises: MalformedTensors, InvalidTask, LayoutMismatch."""
        self._ready()
        from farm_server.task_tensors import TaskTensors  # noqa: PLC0415

        return TaskTensors(recipe, files)

    def _ready(self) -> None:
        if self._warm.is_set():
            return
        with self._lock:
            if not self._warm.is_set():
                _imported().warm_up(self._torch_threads)
                self._warm.set()


def _imported() -> ModuleType:
    from farm_server import task_tensors  # noqa: PLC0415

    return task_tensors
