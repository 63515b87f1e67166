"""Rounds per second of a task that trains nothing: what the farm adds to each round."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.farm import POLL_SECONDS, BenchmarkError, RunningFarm, running_farm, submit, wait_until
from benchmarks.measurement import Measurement
from benchmarks.meters import ServerCount, loopback_bytes, peak_rss_bytes, server_count
from benchmarks.references import References
from farm_client.sdk.outcome import is_over
from protocol.recipe import Mode
from protocol.rest import RoundView

TASK: Final = Path(__file__).parent / "noop_task" / "train.py"
SAMPLES_PER_CLIENT: Final = 64
"""Enough that every client gets a part of each round, whatever speed was measured of it."""
ROUNDS_PER_EPOCH: Final = 64
MOST_ROUNDS: Final = 1_000_000
"""More than any window sees; the task is cancelled at its end."""
WARM_UP_SECONDS: Final = 600.0
SETTLE_SECONDS: Final = 12.0
"""From the first rounds to the window: meanwhile each client starts the spare executor that it keeps beside a task, and
importing torch takes both cores for some seconds."""
LARGE_PARAMS: Final = 100_000_000
"""From here on a round takes a minute or so: few of them must do."""
LONGEST_FACTOR: Final = 20.0
"""A window is stretched to so many times its length until it holds its fewest rounds."""
LONGEST_LARGE_SECONDS: Final = 1200.0
CACHED_VERSIONS: Final = 2
WAITING_UPDATES: Final = 2
SERVER_VERSIONS: Final = 5
"""Copies of the model on the disk: in each client's cache and outbox, and of checkpoints at the server, beside one
update of each client."""
SMALL_BLOBS_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class Case:
    """One measurement: ``seconds`` is the length of its window, ``settle_seconds`` after the first rounds.

    ``pipeline`` is the recipe's option of that name.
    """

    clients: int
    params: int
    mode: str
    seconds: float
    pipeline: bool = False
    settle_seconds: float = SETTLE_SECONDS

    @property
    def is_large(self) -> bool:
        """Whether one round takes about as long as a whole window of a small model."""
        return self.params >= LARGE_PARAMS

    @property
    def warm_up_rounds(self) -> int:
        """Rounds before the window."""
        return 1 if self.is_large else 5

    @property
    def fewest_rounds(self) -> int:
        """Rounds that a window holds at least."""
        return 2 if self.is_large else 5

    @property
    def longest_seconds(self) -> float:
        """When to give up on a window."""
        return max(LONGEST_FACTOR * self.seconds, LONGEST_LARGE_SECONDS if self.is_large else 0.0)

    @property
    def client_environ(self) -> dict[str, str]:
        """Settings of the clients: of a large model no more than two versions are kept, for the disk's sake."""
        return (
            {"FARM_CLIENT_CACHE_BYTES": str(CACHED_VERSIONS * 4 * self.params + SMALL_BLOBS_BYTES)}
            if self.is_large
            else {}
        )


@dataclass(frozen=True)
class Measured(Measurement):
    """What one case gave.

    ``up_bytes_per_round`` and ``down_bytes_per_round`` are payload, as the server counted it; ``wire_bytes`` is all
    that crossed the loopback device during the window. Measured just after, at the same size: ``benchmarks.limit``
    (``ratio`` is the farm's share of it), ``benchmarks.ddp`` (``ddp_ratio``), and a durable write of the model;
    ``budget_ratio`` is a round's seconds over those of five all-reduces and two such writes. A
    reference that failed is None; so is what is of DDP where it does not fit into the machine's memory.
    """

    clients: int
    params: int
    mode: str
    pipeline: bool
    rounds: int
    seconds: float
    rounds_per_s: float
    server_peak_rss_bytes: int
    up_bytes_per_round: int
    down_bytes_per_round: int
    wire_bytes: int
    wire_bytes_per_round: int
    limit_rounds_per_s: float | None
    ratio: float | None
    ddp_steps_per_s: float | None
    ddp_ratio: float | None
    all_reduce_s: float | None
    durable_write_s: float | None
    budget_ratio: float | None


@dataclass(frozen=True)
class Window:
    """From one committed round to a later one: how many rounds, seconds and bytes lie between."""

    rounds: int
    seconds: float
    wire_bytes: int
    counted: ServerCount


def measure(case: Case) -> Measured:
    """Start a farm, submit the no-op task, measure between two commits, and compare with what needs no farm.

    Raises: BenchmarkError if the farm or the task did not get so far.
    """
    with tempfile.TemporaryDirectory(prefix="aifarm-rounds-") as name:
        folder = Path(name)
        _check_disk(case, folder)
        with running_farm(case.clients, folder / "farm", case.client_environ) as farm:
            task_id = submit(farm, _submission(case))
            window = _observe(farm, task_id, case)
            peak_bytes = peak_rss_bytes(farm.processes.server.pid)
            farm.api.act(task_id, "cancel")
        references = References.measure(case.params, case.clients, case.seconds, folder)
    return _compared(case, window, peak_bytes, references)


def _check_disk(case: Case, folder: Path) -> None:
    """Raise BenchmarkError unless the disk holds what a farm of this size keeps at its worst."""
    copies = case.clients * (CACHED_VERSIONS + WAITING_UPDATES)
    copies += case.clients + SERVER_VERSIONS
    needed_bytes, free_bytes = copies * 4 * case.params, shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise BenchmarkError(
            f"{case.clients} clients x {case.params:.0e} parameters may need {needed_bytes / 1e9:.0f} GB of disk and "
            f"{folder} has {free_bytes / 1e9:.0f}: set TMPDIR to a folder on a larger disk"
        )


def _compared(case: Case, window: Window, peak_bytes: int, references: References) -> Measured:
    rounds_per_s = window.rounds / window.seconds
    ddp, budget_s = references.ddp, references.budget_s
    return Measured(
        benchmark="rounds",
        clients=case.clients,
        params=case.params,
        mode=case.mode,
        pipeline=case.pipeline,
        rounds=window.rounds,
        seconds=window.seconds,
        rounds_per_s=rounds_per_s,
        server_peak_rss_bytes=peak_bytes,
        up_bytes_per_round=window.counted.up_bytes // window.counted.rounds,
        down_bytes_per_round=window.counted.down_bytes // window.counted.rounds,
        wire_bytes=window.wire_bytes,
        wire_bytes_per_round=window.wire_bytes // window.rounds,
        limit_rounds_per_s=references.limit_rounds_per_s,
        ratio=rounds_per_s / references.limit_rounds_per_s if references.limit_rounds_per_s else None,
        ddp_steps_per_s=ddp.steps_per_s if ddp else None,
        ddp_ratio=rounds_per_s / ddp.steps_per_s if ddp else None,
        all_reduce_s=ddp.all_reduce_s if ddp else None,
        durable_write_s=references.durable_write_s,
        budget_ratio=1 / rounds_per_s / budget_s if budget_s else None,
    )


def _submission(case: Case) -> list[str]:
    """Return the arguments of `farm submit`: each round is one local step of each client."""
    round_samples = SAMPLES_PER_CLIENT * case.clients
    # local steps are of whole batches: one for each client, or one of them would do the whole round
    batch_samples = SAMPLES_PER_CLIENT if case.mode == Mode.WEIGHTS else round_samples
    return [
        str(TASK),
        "--no-check",
        *("--set", f"params={case.params}"),
        *("--set", f"samples={round_samples * ROUNDS_PER_EPOCH}"),
        *("--mode", case.mode),
        *("--rounds", str(MOST_ROUNDS)),
        *("--round-samples", str(round_samples)),
        *("--batch-samples", str(batch_samples)),
        *("--min-clients", str(case.clients)),
        *("--keep-checkpoints", "1"),
        *(("--pipeline", "--max-staleness", "1") if case.pipeline else ()),
    ]


def _observe(farm: RunningFarm, task_id: str, case: Case) -> Window:
    def warm() -> bool:
        return _newest(farm, task_id).number >= case.warm_up_rounds

    wait_until(warm, WARM_UP_SECONDS, lambda: f"no round was committed: {farm.api.why(task_id)}")
    time.sleep(case.settle_seconds)
    first, first_bytes, first_count = _newest(farm, task_id), loopback_bytes(), server_count(farm.api.address)
    began = time.monotonic()
    last = first
    while (elapsed := time.monotonic() - began) < case.seconds or last.number - first.number < case.fewest_rounds:
        if elapsed > case.longest_seconds:
            raise BenchmarkError(f"less than {case.fewest_rounds} rounds in {elapsed:.0f} s: {farm.api.why(task_id)}")
        time.sleep(POLL_SECONDS)
        last = _newest(farm, task_id)
    return Window(
        last.number - first.number,
        _committed_at(last) - _committed_at(first),
        loopback_bytes() - first_bytes,
        server_count(farm.api.address) - first_count,
    )


_NONE: Final = RoundView(
    number=-1, state="open", epoch=0, samples=0, clients=0, seconds=None, loss=None, committed_at=None
)


def _newest(farm: RunningFarm, task_id: str) -> RoundView:
    """Return the newest committed round, or number -1 if there is none.

    Raises: BenchmarkError if the task ended.
    """
    detail = farm.api.task(task_id)
    if is_over(detail.task):
        raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
    return max((r for r in detail.rounds if r.committed_at is not None), key=lambda r: r.number, default=_NONE)


def _committed_at(view: RoundView) -> float:
    assert view.committed_at is not None
    return view.committed_at
