"""What one machine does without a farm, at the size of a measurement: the simplest programs that move as many bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from psutil import virtual_memory

from benchmarks import limit
from benchmarks.ddp import Ddp
from benchmarks.ddp import measure as measure_ddp
from benchmarks.farm import BenchmarkError

_T = TypeVar("_T")

ALL_REDUCES: Final = 5.0
DURABLE_WRITES: Final = 2.0
"""What a round may take: so many all-reduces of the same floats, and so many durable writes of the same bytes."""
DDP_COPIES: Final = 3
"""Of the model, in each of its processes."""


@dataclass(frozen=True)
class References:
    """Rounds/s of ``benchmarks.limit``, seconds of a write of the model with fsync, and PyTorch DDP over gloo.

    What failed is None, and why is on stderr; so is ``ddp`` where its processes do not fit into this machine's memory.
    """

    limit_rounds_per_s: float | None
    durable_write_s: float | None
    ddp: Ddp | None

    @property
    def budget_s(self) -> float | None:
        """How long a round may take; None without an all-reduce and a write to compare with."""
        if self.ddp is None or self.durable_write_s is None:
            return None
        return ALL_REDUCES * self.ddp.all_reduce_s + DURABLE_WRITES * self.durable_write_s

    @classmethod
    def measure(cls, params: int, clients: int, seconds: float, folder: Path) -> Self:
        """Measure all, with as many processes as the farm had clients, ``seconds`` each; files go to ``folder``.

        A reference that fails costs its own figure and no other.
        """
        return cls(
            limit_rounds_per_s=_tried("the limit", lambda: limit.measure(params, clients, seconds, folder)),
            durable_write_s=_tried("a durable write", lambda: limit.durable_write_s(4 * params, folder)),
            ddp=_tried("DDP", lambda: measure_ddp(params, clients, seconds)) if _fits(params, clients) else None,
        )


def _tried(what: str, measure: Callable[[], _T]) -> _T | None:
    """Return what is measured, or None after saying why there is nothing."""
    try:
        return measure()
    except (BenchmarkError, OSError, subprocess.SubprocessError, ValueError, MemoryError) as error:
        print(f"no figure of {what}: {error}", file=sys.stderr)
        return None


def _fits(params: int, processes: int) -> bool:
    """Tell whether so many processes of DDP have room, each with weights, gradients and gloo's buffers."""
    return processes * DDP_COPIES * 4 * params < virtual_memory().available
