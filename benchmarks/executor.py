"""Samples per second of the executor beside the plain loop of the same model, batch and data, in turns."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import safetensors.torch
import torch

from benchmarks.measurement import Measurement
from benchmarks.plain_loop import TASKS, PlainLoop, plain_loop, task_config, task_module
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.messages import Advance, Piece, Run
from farm_client.executor.process import Launch
from farm_client.sdk.bundle import make_bundle
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.recipe import Mode
from protocol.tasks import Split, TaskBrief

MODELS: Final = ("mlp", "resnet18", "nanogpt", "lora")
TURNS: Final = 3
WARM_UP_STEPS: Final = 5
FEWEST_STEPS: Final = 20
TIMED_STEPS: Final = 5
"""How many of the plain loop say how many steps a turn has."""


@dataclass(frozen=True)
class ExecutorSpeed(Measurement):
    """What one model gave: medians of the turns, and ``ratio`` is that of each turn's pair.

    ``samples_per_s`` is taken between an assignment's first progress report and its last. ``tokens_per_s`` is None
    where a sample is no row of tokens. ``mfu`` is the executor's share of what the device can do
    (``peak_flops.PEAK_FLOPS``, or a timed product), by the operations that torch counts in a step.
    """

    model: str
    device: str
    samples_per_s: float
    plain_samples_per_s: float
    ratio: float
    tokens_per_s: float | None
    mfu: float


def measure(
    model: str, device: str, seconds: float, threads: int, changes: Mapping[str, Any] | None = None
) -> ExecutorSpeed:
    """Measure a model of ``MODELS``, each turn about so long; ``changes`` replace settings of its task."""
    config = {**task_config(model, device), **(changes or {})}
    with tempfile.TemporaryDirectory(prefix="aifarm-executor-") as name:
        folder = Path(name)
        with plain_loop(model, config, device, threads, folder) as plain:
            steps = max(FEWEST_STEPS, round(seconds / (plain.seconds(TIMED_STEPS) / TIMED_STEPS)))
            launch = Launch(folder, threads, gpus="0" if device == "cuda" else "")
            turns = asyncio.run(_turns(model, config, launch, steps, plain))
    ours, theirs = median(mine for mine, _ in turns), median(other for _, other in turns)
    return ExecutorSpeed(
        benchmark="executor",
        model=model,
        device=device,
        samples_per_s=ours,
        plain_samples_per_s=theirs,
        ratio=median(mine / other for mine, other in turns),
        tokens_per_s=ours * config["context"] if "context" in config else None,
        mfu=ours * plain.about.flops_per_sample / plain.about.peak_flops,
    )


async def _turns(
    model: str, config: dict[str, Any], launch: Launch, steps: int, plain: PlainLoop
) -> list[tuple[float, float]]:
    """Return samples/s of the executor and of the plain loop, for each turn."""
    brief, bundle = speed_task(model, config, launch.scratch_root)
    order = speed_order(model, config, launch.scratch_root)
    executor = await Executor.start(launch)
    try:
        await executor.load(brief, TaskFiles(bundle))
        await executor.run(order)
        turns = []
        for turn in range(TURNS):
            changes = {"assignment_id": f"a{turn + 1}", "pieces": speed_pieces(config, steps)}
            ours = await rate(executor, order.model_copy(update=changes))
            seconds = await asyncio.to_thread(plain.seconds, steps)
            turns.append((ours, steps * config["batch"] / seconds))
        return turns
    finally:
        executor.kill()
        await executor.closed()


async def rate(executor: Executor, order: Run) -> float:
    """Do an assignment; return samples/s between its first progress report and its last."""
    reports: list[tuple[float, int]] = []

    def note(advance: Advance) -> None:
        reports.append((time.perf_counter(), advance.samples_done))

    executor.on_advance = note
    began = time.perf_counter()
    done = await executor.run(order)
    ended = time.perf_counter()
    if len(reports) < 3:  # an assignment too short for that: all of it
        return done.samples / (ended - began)
    (first_at, first), (last_at, last) = reports[0], reports[-1]
    return (last - first) / (last_at - first_at)


def speed_task(model: str, config: dict[str, Any], folder: Path) -> tuple[TaskBrief, Path]:
    """Write a task's code to a bundle, and return what the client knows of the task, and the bundle."""
    code = make_bundle(TASKS, f"{model}.py")
    bundle = folder / "bundle"
    bundle.write_bytes(code.data)
    brief = TaskBrief(
        task_id=model,
        name=model,
        mode=Mode.WEIGHTS,
        code=code.blob,
        entry=code.entry,
        config=config,
        seed=0,
        batch_samples=config["batch"],
        dataset_kind="code",
        keep_inner_optimizer=True,
    )
    return brief, bundle


def speed_order(model: str, config: dict[str, Any], folder: Path) -> Run:
    """Write a model's weights file, and return the order of some steps from there, which warm everything up."""
    torch.manual_seed(0)
    weights = safetensors.torch.save(task_module(model).build_model(config).state_dict())
    path = folder / "weights"
    path.write_bytes(weights)
    return Run(
        assignment_id="a0",
        kind=Kind.TRAIN,
        round=0,
        epoch=0,
        weights_digest=digest_bytes(weights),
        weights_path=str(path),
        pieces=speed_pieces(config, WARM_UP_STEPS),
    )


def speed_pieces(config: Mapping[str, Any], steps: int) -> tuple[Piece, ...]:
    """Return pieces of the task's one shard, again and again, of so many batches."""
    rows, wanted = config["rows"], steps * config["batch"]
    lengths = [rows] * (wanted // rows) + ([wanted % rows] if wanted % rows else [])
    return tuple(
        Piece(shard=0, split=Split.TRAIN, shard_samples=rows, first_row=0, path=None, start=0, stop=length)
        for length in lengths
    )
