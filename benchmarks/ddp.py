"""PyTorch DDP over gloo on loopback: what the farm's rounds are compared with, measured in the same run.

N processes each take steps of a model that computes nothing, through DistributedDataParallel; and they all-reduce
as many floats. Nothing is kept, and no process may be lost.

Run as ``python -m benchmarks.ddp --rank R …``, once for each process; rank 0 prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.farm import BenchmarkError
from benchmarks.limit import REPOSITORY
from benchmarks.noop_task.train import tensor_sizes

LONGEST_SECONDS: Final = 300.0
WARM_UP: Final = 3
FEWEST: Final = 3


@dataclass(frozen=True)
class Ddp:
    """Steps of DDP a second, and the seconds of one all-reduce of as many float32 numbers."""

    steps_per_s: float
    all_reduce_s: float


class Idle(nn.Module):
    """As many parameters as the farm's no-op task, in the same tensors; each gets a gradient, nothing is computed."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.zeros(size) for size in tensor_sizes(params))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Touch one number of each tensor."""
        return torch.stack([part[0] for part in self.parts]).sum() * x.mean()


def measure(params: int, processes: int, seconds: float) -> Ddp:
    """Return what so many processes on this machine reach, each measured for ``seconds``.

    Raises: BenchmarkError if a process fails before there is a figure, or all of it takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="aifarm-ddp-") as folder:
        started = [_start(rank, params, processes, seconds, Path(folder)) for rank in range(processes)]
        deadline = time.monotonic() + LONGEST_SECONDS + 20 * seconds
        try:
            answer, _ = started[0].communicate(timeout=deadline - time.monotonic())
            for process in started:
                process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"DDP with {processes} processes did not end in time") from error
        finally:
            _end(started)
    codes = [process.returncode for process in started]
    found = _read(answer)
    if found is None:
        raise BenchmarkError(f"DDP failed: exit codes {codes}; see above")
    if any(codes):  # it had measured by then: gloo's threads may abort while the interpreter exits
        print(f"DDP measured, and did not exit cleanly: exit codes {codes}", file=sys.stderr)
    return found


def _read(answer: str) -> Ddp | None:
    """Return what rank 0 measured, or None if it did not get so far."""
    try:
        return Ddp(**json.loads(answer))
    except (ValueError, TypeError):
        return None


def _start(rank: int, params: int, processes: int, seconds: float, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.ddp", "--rank", str(rank), "--processes", str(processes)]
    command += ["--params", str(params), "--seconds", str(seconds), "--rendezvous", str(folder / "rendezvous")]
    # One thread each, as the farm's clients have.
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environ)


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run(rank: int, processes: int, params: int, seconds: float, rendezvous: Path) -> Ddp:
    """Be one of the processes, and return what it saw."""
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    try:
        all_reduce_s = _time_all_reduce(params, seconds)
        step_s = _time_step(params, seconds)
    finally:
        distributed.destroy_process_group()
    return Ddp(steps_per_s=1 / step_s, all_reduce_s=all_reduce_s)


def _time_all_reduce(params: int, seconds: float) -> float:
    vector = torch.zeros(params)
    return _seconds_of(lambda: distributed.all_reduce(vector), seconds)


def _time_step(params: int, seconds: float) -> float:
    model = DistributedDataParallel(Idle(params), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.ones(1)

    def step() -> None:
        model(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return _seconds_of(step, seconds)


def _seconds_of(act: Callable[[], object], seconds: float) -> float:
    """Return the mean seconds of one call, over about ``seconds`` of them; all processes make the same number."""
    began = time.perf_counter()
    for _ in range(WARM_UP):
        act()
    once = (time.perf_counter() - began) / WARM_UP
    count = torch.tensor(max(FEWEST, int(seconds / once)))
    distributed.broadcast(count, src=0)
    distributed.barrier()
    began = time.perf_counter()
    for _ in range(int(count)):
        act()
    return (time.perf_counter() - began) / int(count)


def main() -> None:
    """Be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rank", "processes", "params"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = run(given.rank, given.processes, given.params, given.seconds, given.rendezvous)
    if given.rank == 0:
        print(json.dumps(vars(found)), flush=True)


if __name__ == "__main__":
    main()
