"""Snapshots of a long assignment: a process that takes the place of one that died goes on from the last one.

A snapshot is a file of ``step_state``, at a path that the agent names by the work: another version, other rows or
another task have another path. It is copied out of the model between two steps and written by a thread beside the next
ones; what it costs is measured, and the next one waits until that is a small part of the time.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psutil

from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.inner_state import SavedState, StateFiles
from farm_client.executor.layout import TensorMap, apart, as_stored
from farm_client.executor.means import remark
from farm_client.executor.messages import Run
from farm_client.executor.progress import StepsProgress
from farm_client.executor.samples import Batches
from farm_client.executor.step_state import StateUnusable, StepState
from farm_client.executor.suspension import Suspension
from protocol.codecs import tensor_file

MOST_SHARE: Final = 0.02
"""The part of the time for which snapshots may hold the steps up."""
SPARED_DISK_BYTES: Final = 512 * 1024 * 1024
"""What a snapshot leaves free: blobs and finished results come first."""
_BLOCK_BYTES: Final = 4 * 1024 * 1024


class Snapshots:
    """Those of one assignment. Without a path, or with ``every_seconds`` 0, there are none."""

    def __init__(
        self,
        path: Path | None,
        every_seconds: float,
        saved: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        suspension: Suspension | None = None,
    ) -> None:
        """``saved`` is called, on another thread, when one is written; ``suspension`` is looked at after each step."""
        self._path = path if every_seconds > 0 else None
        self._every_seconds = every_seconds
        self._saved = saved
        self._clock = clock
        self._suspension = suspension
        self._due_at = clock() + every_seconds
        self._writing: threading.Thread | None = None
        self._placing = threading.Lock()
        self._is_over = False

    @classmethod
    def of(cls, order: Run, every_seconds: float, progress: StepsProgress) -> Snapshots:
        """Return those of an order."""
        path = None if order.snapshot_path is None else Path(order.snapshot_path)
        return cls(path, every_seconds, progress.saved, suspension=progress.suspension)

    def keep_at(self, path: str | None) -> None:
        """Take them from now on; a state that is there already is left behind: these steps are beyond its beginning."""
        self._path = Path(path) if path is not None and self._every_seconds > 0 else None

    def resume(self, state: StepState) -> None:
        """Let the state become that of the last snapshot, if there is one.

        Raises: StateUnusable if it is damaged, or of another torch; it is gone then, and the state must be made anew.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            state.load(self._path, self._about)
        except StateUnusable as error:
            self.drop()
            remark(f"a snapshot was dropped, {error}: the assignment begins anew")
            raise
        remark(f"going on from a snapshot: {state.samples} samples were done")

    def after_step(self, state: StepState) -> None:
        """Take one if it is time; a snapshot that can't be taken ends them, and the work goes on.

        At the order to suspend the last one is taken, and this does not return.
        Raises: LossNotFinite, of a step whose loss is read for it.
        """
        if self._suspension is not None and self._suspension.is_ordered():
            self._take_last(state)
            self._suspension.obey()
        if self._path is None or self._is_over or self._clock() < self._due_at or self._is_writing:
            return
        began = self._clock()
        try:
            self._take(state, self._path)
        except LossNotFinite:
            raise
        except (CodeError, MemoryError, RuntimeError, OSError) as error:
            self._give_up(error)
        held_up_seconds = self._clock() - began
        self._due_at = self._clock() + max(self._every_seconds, held_up_seconds / MOST_SHARE)

    def _take_last(self, state: StepState) -> None:
        """Take one and wait until it is on the disk, so that no step is lost; without room the one before stays.

        Raises: LossNotFinite.
        """
        if self._path is None or self._is_over:
            return
        self.wait()
        try:
            self._take(state, self._path)
        except LossNotFinite:
            raise
        except (CodeError, MemoryError, RuntimeError, OSError) as error:
            self._give_up(error)
        self.wait()

    def wait(self) -> None:
        """Wait until the one that is being written is on the disk."""
        if self._writing is not None:
            self._writing.join()

    def end(self) -> None:
        """The assignment is over: what is still being written is never put in its place."""
        with self._placing:
            self._is_over = True

    def drop(self) -> None:
        """Remove the last one."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    @property
    def _is_writing(self) -> bool:
        return self._writing is not None and self._writing.is_alive()

    @property
    def _about(self) -> dict[str, Any]:
        return {"work": "" if self._path is None else self._path.stem}

    def _take(self, state: StepState, path: Path) -> None:
        saved = state.saved(self._about)
        size_bytes = sum(tensor.nbytes for tensor in saved.tensors.values())
        if shutil.disk_usage(path.parent).free < size_bytes + SPARED_DISK_BYTES:
            raise OSError(errno.ENOSPC, f"the disk has no room for {size_bytes} bytes beside what others need")
        if psutil.virtual_memory().available < 2 * size_bytes:
            self._write(SavedState(as_stored(saved.tensors), saved.metadata), path)  # no room for a copy: steps wait
            return
        copied: TensorMap = apart(saved.tensors)
        arguments = (SavedState(copied, saved.metadata), path)
        # A daemon: an executor whose agent is gone ends at once.
        self._writing = threading.Thread(target=self._write, args=arguments, name="snapshot-writer", daemon=True)
        self._writing.start()

    def _write(self, saved: SavedState, path: Path) -> None:
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("wb") as file:
                for chunk in tensor_file(saved.tensors, saved.metadata):
                    for start in range(0, len(chunk), _BLOCK_BYTES):
                        if self._is_over:
                            return
                        file.write(memoryview(chunk)[start : start + _BLOCK_BYTES])
                file.flush()
                os.fsync(file.fileno())
            with self._placing:
                if self._is_over:
                    return
                unfinished.replace(path)
            self._saved()
        except ConnectionError:  # the agent is gone: nobody to tell
            return
        except (OSError, ValueError) as error:
            self._give_up(error)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _give_up(self, error: BaseException) -> None:
        self._is_over = True
        remark(f"no more snapshots of this assignment, which goes on without: {error}")


@dataclass
class StepKeeping:
    """What is kept of an assignment's steps: ``residual`` is the update codec's, which goes along."""

    snapshots: Snapshots
    states: StateFiles
    residual: TensorMap
    state: StepState | None = None
    """That of the steps that have begun."""

    def resumed(self, state: StepState) -> StepState:
        """Return the state, as the last snapshot left it if there is one. Raises: as ``Snapshots.resume``."""
        state.residual = self.residual
        self.snapshots.resume(state)
        self.state = state
        return state


def walk(
    state: StepState, data: Batches, advance: Callable[[int], None], snapshots: Snapshots, until: int | None = None
) -> Iterator[tuple[int, int, Any]]:
    """Yield (step from 1, samples, batch) of each batch that the state has not seen yet, and count what was done.

    ``until``: the last step, where it is not that of the last batch.
    """
    if state.samples:
        advance(state.samples)
    for samples, batch in islice(data.sized(skip=state.steps), None if until is None else max(until - state.steps, 0)):
        state.begin_step(batch, samples)
        yield state.steps + 1, samples, batch
        state.end_step()
        advance(samples)
        snapshots.after_step(state)
