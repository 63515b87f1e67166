"""The plain loop of a task of ``speed_tasks``, in a process of its own: what its author would run without a farm.

The process is asked for steps by a line on its input (their number), and answers each with a line of JSON. It logs
the loss of every ``LOG_EVERY`` steps, as such scripts do, and checks nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.farm import BenchmarkError
from benchmarks.peak_flops import peak_flops
from farm_client.executor.environment import HEAP_VARIABLES, executor_environment

TASKS: Final = Path(__file__).parent / "speed_tasks"
LOG_EVERY: Final = 10
WARM_UP_STEPS: Final = 3


def task_module(model: str) -> ModuleType:
    """Import a task's code, as its author's script would."""
    if str(TASKS) not in sys.path:
        sys.path.append(str(TASKS))
    return importlib.import_module(model)


def task_config(model: str, device: str) -> dict[str, Any]:
    """Return a task's settings for a kind of device, with ``batch`` and ``rows`` (samples) among them."""
    return dict(task_module(model).CONFIGS[device])


@dataclass(frozen=True)
class About:
    """What the process says at first: operations of a sample's step, and the most that the device does a second."""

    flops_per_sample: float
    peak_flops: float


class PlainLoop:
    """The asking side: one running process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about = About(**self._answer())

    def seconds(self, steps: int) -> float:
        """Have it take so many steps, and return the seconds that they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the plain loop's process ended; its traceback is above")
        return dict(json.loads(line))


@contextmanager
def plain_loop(model: str, config: dict[str, Any], device: str, threads: int, folder: Path) -> Iterator[PlainLoop]:
    """Start a plain loop and end it with the block.

    It computes with as many threads as executors, that wait alike; its heap is that of any Python process.
    """
    environment = {**os.environ, **executor_environment(folder, threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.plain_loop", model, json.dumps(config), device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in environment.items() if name not in HEAP_VARIABLES},
    )
    try:
        yield PlainLoop(process)
    finally:
        process.kill()
        process.communicate()


def _main(model_name: str, config_text: str, device_name: str) -> None:
    config, device = json.loads(config_text), torch.device(device_name)
    task = task_module(model_name)
    torch.manual_seed(0)
    model = task.build_model(config).to(device)
    model.train()
    optimizer = task.build_optimizer(model, config)
    batches = _batches(task, config, device)

    def step() -> torch.Tensor:
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = task.loss(model, batch)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    with FlopCounterMode(display=False) as counter:
        step()
    for _ in range(WARM_UP_STEPS):
        step()
    flops_per_sample = counter.get_total_flops() / config["batch"]
    _say({"flops_per_sample": flops_per_sample, "peak_flops": peak_flops(device, os.environ)})
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with Path(os.devnull).open("w") as log:
        for line in sys.stdin:
            wait()
            began = time.perf_counter()
            for number in range(int(line)):
                loss = step()
                if number % LOG_EVERY == 0:
                    log.write(f"step {number}: loss {loss.item():.3f}\n")
            wait()
            _say({"seconds": time.perf_counter() - began})


def _batches(task: Any, config: dict[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield shuffled batches of the task's one shard for ever; for a card from pinned memory, as loaders do."""
    table = task.load_shard(SimpleNamespace(index=0, samples=config["rows"], config=config))
    size = config["batch"]
    while True:
        order = torch.randperm(config["rows"])
        for start in range(0, config["rows"] - size + 1, size):
            batch = {name: column[order[start : start + size]] for name, column in table.items()}
            if device.type == "cuda":
                batch = {name: part.pin_memory().to(device, non_blocking=True) for name, part in batch.items()}
            yield batch


def _say(answer: dict[str, float]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
