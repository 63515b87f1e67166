"""One map in an executor; runs its parts one after the other, as ``TaskRunner`` does with assignments of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from farm_client.data.shards import Rows, read_shard
from farm_client.executor.failures import CodeError, MissingFile, blaming
from farm_client.executor.map_function import MapFunction
from farm_client.executor.messages import Done, LoadTask, Piece, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.speculation import Speculation
from farm_client.stage_clock import StageClock
from protocol.assignments import WorkStage
from protocol.digests import digest_bytes
from protocol.maps import FAILED_ITEMS, MAX_PART_BYTES, MapPlan
from protocol.outputs import join_outputs
from protocol.wording import sized

_READ_AT_ONCE: Final = 256
"""Items that are read from a shard at a time where the function takes one by one."""


class MapRunner:
    """A loaded map."""

    def __init__(self, order: LoadTask, device: torch.device, imported: Callable[[], None] = lambda: None) -> None:
        """Import the code and set it up. Raises: CodeError; memory errors."""
        self._order = order
        imported()
        self.function = MapFunction(order, device)
        plan = order.map or MapPlan()
        self._batch = plan.batch_items if self.function.takes_batches else _READ_AT_ONCE
        self._shards: dict[str, Rows] = {}

    def run(self, order: Run, progress: ProgressReporter) -> Done:
        """Run the function on a part's items, return their outputs. Raises: CodeError; MissingFile; memory errors."""
        return self._written(*self._computed(order, progress))

    def run_ahead(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``; who calls what is returned joins and writes the outputs, beside the next part's items."""
        computed = self._computed(order, progress)
        return lambda: self._written(*computed)

    def _computed(self, order: Run, progress: ProgressReporter) -> tuple[Run, list[bytes], int, StageClock, float]:
        started, clock = time.perf_counter(), StageClock()
        failed_before = self.function.failed_items
        outputs: list[bytes] = []
        size_bytes = 0
        with blaming(self.function.code_dir):
            for items, position, count in self._batches(order):
                found = self.function.outputs(items, position, count)
                outputs += found
                size_bytes += sum(map(len, found))
                if size_bytes > MAX_PART_BYTES:
                    raise CodeError(
                        f"the outputs of items {order.position} to {position + count - 1} take over "
                        f"{sized(MAX_PART_BYTES)} together: map fewer at a time (--part), or return less"
                    )
                progress.advance(count)
        clock.ended(WorkStage.TRAIN)
        failed = self.function.failed_items - failed_before
        return order, outputs, failed, clock, time.perf_counter() - started

    def _batches(self, order: Run) -> Iterator[tuple[Any, int, int]]:
        """Yield batches of the part's items, each with its first one's position and how many they are.

        They begin at multiples of their size, so that an item is in the same batch whoever has it.
        """
        position, waiting = order.position, 0
        rows: Rows | None = None
        parts: list[Any] = []
        for rows, start, stop in map(self._rows, order.pieces):
            end = start
            while end < stop:
                begin, end = end, min(end + self._batch - (position + waiting) % self._batch, stop)
                parts.append(range(begin, end) if rows is None else rows.take(torch.arange(begin, end)))
                waiting += end - begin
                if (position + waiting) % self._batch == 0:
                    yield _joined(rows, parts), position, waiting
                    position, waiting, parts = position + waiting, 0, []
        if waiting:
            yield _joined(rows, parts), position, waiting

    def _rows(self, piece: Piece) -> tuple[Rows | None, int, int]:
        """Return a shard's rows and which of them; None where the items are numbers, which is what they are then."""
        if piece.path is None:
            return None, piece.first_row + piece.start, piece.first_row + piece.stop
        if piece.path not in self._shards:
            self._shards.clear()  # the shards of a part come one after the other
            try:
                self._shards[piece.path] = read_shard(Path(piece.path))
            except FileNotFoundError as error:
                raise MissingFile(f"shard {piece.shard} is not in the cache any more") from error
        return self._shards[piece.path], piece.start, piece.stop

    def _written(self, order: Run, outputs: list[bytes], failed: int, clock: StageClock, seconds: float) -> Done:
        data = join_outputs(outputs)
        digest = digest_bytes(data)
        metrics = {FAILED_ITEMS: float(failed)} if failed else {}
        done = Done(assignment_id=order.assignment_id, samples=len(outputs), metrics=metrics, compute_seconds=seconds)
        fields: dict[str, Any] = {"update_digest": digest, "update_bytes": len(data)}
        if len(data) <= self._order.report_bytes:
            fields["update"] = data
        else:
            path = Path(self._order.scratch_dir) / f"{order.assignment_id}.outputs"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            fields["update_path"] = str(path)
        clock.ended(WorkStage.WRITE)
        return done.model_copy(update={**fields, "stage_seconds": clock.seconds})

    @property
    def guess(self) -> Run | None:
        """Return None: what comes next is not guessed."""
        return None

    def run_on(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``."""
        return self.run(order, progress)

    def run_guess(self, speculation: Speculation) -> Done | Callable[[], Done]:
        """Raise: there is no guess."""
        raise RuntimeError("a map's parts are not guessed")

    def undo(self, *, is_wrong: bool) -> None:
        """Do nothing: there is no guess."""

    def confirm(self) -> None:
        """Do nothing: a part leaves nothing behind for the next one."""

    def foresee(self) -> str | None:
        """Return None: there are no versions."""
        return None


def _joined(rows: Rows | None, parts: list[Any]) -> Any:
    """Return one batch of what was read of several shards."""
    return [number for part in parts for number in part] if rows is None else rows.join(parts)
