"""The share of time that clients compute behind thin lines, with what hides the lines turned on step by step.

Each client reaches the server through a fault proxy of its own (``tests/chaos/proxy.py``). Its steps take a set time,
so that what is lost is lost to the lines and to the farm.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.meters import ServerCount, server_count
from benchmarks.mortal_farm import MortalFarm
from benchmarks.regression import submit_prepared
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared, Submission, prepare
from protocol.compression import CodecName, CodecSpec
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe
from tests.chaos.proxy import FaultProxy, Line

TASK: Final = Path(__file__).parent / "links_task" / "train.py"
DILOCO: Final = OuterOptimizer(name="sgd", options={"lr": 0.7, "momentum": 0.9, "nesterov": True})
"""Douillard et al., arXiv:2311.08105."""
BATCH_SECONDS: Final = 0.1
BATCH_SAMPLES: Final = 4
ROUNDS_PER_EPOCH: Final = 64
MOST_ROUNDS: Final = 1_000_000
WARM_UP_ROUNDS: Final = 2
FEWEST_ROUNDS: Final = 2
LONGEST_SECONDS: Final = 600.0
_INT8: Final = CodecSpec(name=CodecName.INT8)


class Variant(StrEnum):
    """What hides the lines; each has what the one before it has."""

    PLAIN = "plain"
    INT8 = "int8"
    PIPELINE = "pipeline"


CHANGES: Final[Mapping[Variant, Mapping[str, Any]]] = MappingProxyType(
    {
        Variant.PLAIN: {},
        Variant.INT8: {"update_codec": _INT8, "weights_codec": _INT8},
        Variant.PIPELINE: {"update_codec": _INT8, "weights_codec": _INT8, "pipeline": True, "max_staleness": 1},
    }
)
"""Recipe fields beside those of DiLoCo."""


@dataclass(frozen=True)
class Lines:
    """Who trains what behind which lines. Bandwidth and delay hold for each client and direction."""

    clients: int = 4
    params: int = 10_000_000
    bits_per_s: float = 100e6
    delay_s: float = 0.1
    round_compute_s: float = 10.0
    """How long a client computes for one round: DiLoCo has many local steps in each."""

    @property
    def round_steps(self) -> int:
        """Local steps of one client in a round."""
        return max(1, round(self.round_compute_s / BATCH_SECONDS))

    @property
    def round_samples(self) -> int:
        """What all clients train on in a round."""
        return self.clients * self.round_steps * BATCH_SAMPLES

    @property
    def line(self) -> Line:
        """What each client's line does, in each direction."""
        return Line(delay_seconds=self.delay_s, bytes_per_second=self.bits_per_s / 8)


@dataclass(frozen=True)
class Links(Measurement):
    """What one variant gave.

    ``compute_share`` is the executors' time from an assignment's start to its update, over wall time times clients;
    ``step_share`` counts only the rest of the batches in it, without reading, encoding and writing of tensors.
    """

    variant: Variant
    clients: int
    params: int
    bits_per_s: float
    delay_s: float
    round_compute_s: float
    rounds: int
    seconds: float
    compute_share: float
    step_share: float
    up_bytes_per_round: int
    down_bytes_per_round: int


@dataclass(frozen=True)
class Moment:
    """What was counted when a round was committed."""

    at: float
    samples: int
    count: ServerCount


def measure(variant: Variant, lines: Lines, seconds: float) -> Links:
    """Train behind the lines for so long, from a commit to a commit. Raises: BenchmarkError, DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="aifarm-links-") as name:
        folder = Path(name)
        prepared = _prepare(lines, folder / "task")
        with farm_behind_lines(folder / "farm", lines) as farm:
            task_id = submit_prepared(farm.api, prepared, **CHANGES[variant])
            first = _commit_after(farm, task_id, rounds=WARM_UP_ROUNDS, seconds=0)
            last = _commit_after(farm, task_id, rounds=first.count.rounds + FEWEST_ROUNDS, seconds=seconds)
    return _measured(variant, lines, first, last)


@contextmanager
def farm_behind_lines(folder: Path, lines: Lines) -> Iterator[MortalFarm]:
    """Run a farm whose clients each reach the server through a line of their own."""
    folder.mkdir(parents=True)
    farm = MortalFarm(folder)
    with ExitStack() as stack:
        stack.callback(farm.close)
        farm.start_server()
        names = [f"client-{number}" for number in range(1, lines.clients + 1)]
        for seed, name in enumerate(names):
            proxy = stack.enter_context(FaultProxy(("127.0.0.1", farm.port), seed=seed, line=lines.line))
            farm.start_client(name, join_url=farm.join_url.replace(f":{farm.port}", f":{proxy.port}"))
        farm.wait_online(*names)
        yield farm
        farm.check_ends()


def _prepare(lines: Lines, folder: Path) -> Prepared:
    folder.mkdir(parents=True)
    config = {
        "params": lines.params,
        "samples": ROUNDS_PER_EPOCH * lines.round_samples,
        "batch_seconds": BATCH_SECONDS,
        "round_steps": lines.round_steps,
    }
    recipe = Recipe(
        mode=Mode.WEIGHTS,
        rounds=MOST_ROUNDS,
        round_samples=lines.round_samples,
        batch_samples=BATCH_SAMPLES,
        outer=DILOCO,
        inner_state=InnerState.KEPT,
        min_clients=lines.clients,
        evaluate_every=0,
        keep_checkpoints=1,
    )
    return prepare(Submission(code=TASK, recipe=recipe, config=config, name="links", check=False), folder)


def _commit_after(farm: MortalFarm, task_id: str, rounds: int, seconds: float) -> Moment:
    """Wait for so many seconds and committed rounds, and then for the next commit; return what was counted there."""
    earliest = time.monotonic() + seconds

    def committed() -> int:
        farm.check()
        task = farm.api.task(task_id).task
        if is_over(task):
            raise BenchmarkError(f"the task {task.state}: {task.error or task.why}")
        return task.round

    farm.wait_for(lambda: committed() >= rounds and time.monotonic() >= earliest, "rounds go by", LONGEST_SECONDS)
    before = committed()
    farm.wait_for(lambda: committed() > before, "another round is committed", LONGEST_SECONDS)
    task = farm.api.task(task_id).task
    return Moment(time.monotonic(), task.samples_done, server_count(farm.api.address))


def _measured(variant: Variant, lines: Lines, first: Moment, last: Moment) -> Links:
    seconds, count = last.at - first.at, last.count - first.count
    client_seconds = seconds * lines.clients
    return Links(
        benchmark="links",
        variant=variant,
        clients=lines.clients,
        params=lines.params,
        bits_per_s=lines.bits_per_s,
        delay_s=lines.delay_s,
        round_compute_s=lines.round_compute_s,
        rounds=count.rounds,
        seconds=seconds,
        compute_share=count.compute_seconds / client_seconds,
        step_share=(last.samples - first.samples) / BATCH_SAMPLES * BATCH_SECONDS / client_seconds,
        up_bytes_per_round=count.up_bytes // count.rounds,
        down_bytes_per_round=count.down_bytes // count.rounds,
    )
