"""What a spare executor saves a new task, and what it holds for that: with one and without one, in turns."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.measurement import Measurement
from farm_client.agent.executors.executor_pool import ExecutorPool, Keeping
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.process import EXECUTOR_MODULE, Launch
from farm_client.sdk.bundle import make_bundle
from protocol.recipe import Mode
from protocol.tasks import TaskBrief

_CODE: Final = Path(__file__).parent / "noop_task" / "train.py"
_KEEPING: Final = Keeping(fewest=1, idle_seconds=3600.0)


@dataclass(frozen=True)
class Spare(Measurement):
    """Seconds from an assignment of a task that is new to the client until its code is loaded and a step can begin.

    ``gain`` is the median without a spare over the median with one.
    """

    with_spare_s: list[float]
    without_s: list[float]
    gain: float
    spare_rss_bytes: int
    """What it holds as long as it waits; pages that other executors have too are counted."""


def measure(repeats: int, module: str = EXECUTOR_MODULE) -> Spare:
    """Measure so many starts each way; ``module`` is what an executor's process runs."""
    return asyncio.run(_measure(repeats, module))


async def _measure(repeats: int, module: str) -> Spare:
    spared: list[float] = []
    bare: list[float] = []
    held: list[int] = []
    with tempfile.TemporaryDirectory(prefix="aifarm-spare-") as name:
        scratch, bundle = Path(name) / "scratch", Path(name) / "bundle"
        scratch.mkdir()
        task = _task(bundle)
        for _ in range(repeats):
            for found, has_spare in ((spared, True), (bare, False)):
                pool = ExecutorPool(Launch(scratch, cpu_cores=1, module=module), _KEEPING)
                try:
                    if has_spare:
                        pool.prestart()
                        await pool.warmed_up()
                        held += _resident_bytes(scratch)
                    found.append(await _seconds_to_load(pool, task, bundle))
                finally:
                    await pool.close()
    return Spare("spare", spared, bare, median(bare) / median(spared), max(held))


async def _seconds_to_load(pool: ExecutorPool, task: TaskBrief, bundle: Path) -> float:
    pool.retire()  # no other one starts beside what is measured
    began = time.perf_counter()
    await pool.take_new(task, TaskFiles(bundle), lambda *_: None)
    return time.perf_counter() - began


def _resident_bytes(scratch: Path) -> Sequence[int]:
    """Return the resident memory of the executors that have their folders there."""
    children = psutil.Process().children(recursive=True)
    return [child.memory_info().rss for child in children if scratch.resolve() in Path(child.cwd()).parents]


def _task(bundle: Path) -> TaskBrief:
    """Write a task's code to ``bundle``, and return what the client knows of the task."""
    code = make_bundle(_CODE)
    bundle.write_bytes(code.data)
    return TaskBrief(
        task_id="new",
        name="new",
        mode=Mode.WEIGHTS,
        code=code.blob,
        entry=code.entry,
        config={"params": 1000},
        seed=0,
        batch_samples=1,
        dataset_kind="code",
    )
