"""Lazy import of everything that needs torch: it takes seconds, in which clients may come back already.

These are the only imports inside functions; the first call of any of them waits for torch. An import that failed
half-way can't be repaired in the same process: whoever needs torch then is told so, and the server ends.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.compression import CodecSpec
from protocol.errors import FarmError, Unavailable
from protocol.recipe import OuterOptimizer, Recipe
from protocol.secure_messages import Unmasking
from protocol.tensors import Layout
from storage.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from types import ModuleType

    from farm_server.tensors.task_tensors import TaskTensors
    from protocol.codecs.checking import BadNumbers
    from protocol.secagg.unmasking import LeftMasks


class TorchSide:
    """Imports torch once, on whichever thread needs it first."""

    def __init__(self, torch_threads: int) -> None:
        self._torch_threads = torch_threads
        self._warm = threading.Event()
        self._lock = threading.Lock()
        self._broken: str | None = None

    @property
    def is_warm(self) -> bool:
        """Whether no call has to wait for the import."""
        return self._warm.is_set()

    def warm_up(self) -> None:
        """Import torch ahead of need. Raises: Unavailable, now and whenever torch is needed, if that fails."""
        self._ready()

    def bad_tensor(self, update: bytes | Path, layout: Layout, codec: CodecSpec, samples: int) -> BadNumbers | None:
        """Return a stored tensor of an update whose numbers can't be summed over a round of ``samples``, or None.

        Raises: MalformedTensors if what is stored can't be decoded.
        """
        self._ready()
        from farm_server.tensors.task_tensors import bad_tensor  # noqa: PLC0415

        return bad_tensor(update, layout, codec, samples)

    def bad_state(self, update: bytes | Path) -> str | None:
        """Return a tensor of the inner state that an update carries which holds NaN or an infinity, or None."""
        self._ready()
        from farm_server.tensors.task_tensors import bad_state  # noqa: PLC0415

        return bad_state(update)

    def check_outer_optimizer(self, spec: OuterOptimizer, layout: Layout) -> None:
        """Check that the optimizer can be built for the layout. Raises: InvalidTask."""
        self._ready()
        from coordinator.numerics.outer_optimizer import check_outer_optimizer  # noqa: PLC0415

        check_outer_optimizer(spec, layout)

    def open_task(self, recipe: Recipe, files: CheckpointFiles) -> TaskTensors:
        """Return a task's tensors, ready for a round. Raises: MalformedTensors, InvalidTask, LayoutMismatch."""
        self._ready()
        from farm_server.tensors.task_tensors import TaskTensors  # noqa: PLC0415

        return TaskTensors(recipe, files)

    def masks_left(self, task_id: str, round_number: int, unmasking: Unmasking) -> LeftMasks:
        """Return what is still on a round's masked sum. Raises: SecureSumFailed, if the shares don't tell."""
        self._ready()
        from protocol.secure_wire import masks_left  # noqa: PLC0415

        return masks_left(task_id, round_number, unmasking)

    def _ready(self) -> None:
        if self._warm.is_set():
            return
        with self._lock:
            if self._broken is not None:
                raise Unavailable(self._broken)
            if not self._warm.is_set():
                try:
                    _imported().warm_up(self._torch_threads)
                except Exception as error:
                    # modules that are imported half-way stay so, and give other errors at each further try
                    self._broken = (
                        f"torch can't be imported ({type(error).__name__}: {error}); "
                        "see to open files, memory and the installation, and start the server again"
                    )
                    raise Unavailable(self._broken) from error
                self._warm.set()


def _imported() -> ModuleType:
    from farm_server.tensors import task_tensors  # noqa: PLC0415

    return task_tensors


class WarmUp:
    """Imports torch on a thread of its own, while clients come back already. On one event loop."""

    def __init__(self, torch_side: TorchSide) -> None:
        self._torch_side = torch_side
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[FarmError | None] = self._loop.create_future()

    def start(self) -> None:
        """Begin, and return at once."""
        threading.Thread(target=self._run, name="warm-up", daemon=True).start()

    async def done(self) -> None:
        """Wait until torch is imported. Raises: Unavailable if it can't be: this process will never train."""
        if (failure := await asyncio.shield(self._done)) is not None:
            raise failure

    def _run(self) -> None:
        failure: FarmError | None = None
        try:
            self._torch_side.warm_up()
        except FarmError as error:
            failure = error
        gc.freeze()  # torch brings a million objects that live for ever: no collection should walk them again
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._finish, failure)

    def _finish(self, failure: FarmError | None) -> None:
        if not self._done.done():
            self._done.set_result(failure)
