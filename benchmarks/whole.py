"""A whole run with one client, farm against plain loop: what rounds cost where nobody else takes part.

From the first assignment to the last commit there is all that a farm does beside the steps: weights to the device,
updates off it, encoded, hashed, written, sent, folded, and the next version on its way back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from benchmarks.farm import BenchmarkError, RunningFarm, running_farm, wait_until
from benchmarks.links import DILOCO
from benchmarks.measurement import Measurement
from benchmarks.meters import stage_seconds
from benchmarks.plain_loop import TASKS, About, plain_loop, task_module
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.upload import upload
from protocol.compression import CodecName, CodecSpec
from protocol.recipe import InnerState, Mode, Recipe
from protocol.rest import RoundView

TASK: Final = TASKS / "nanogpt.py"
SHAPES: Final = MappingProxyType({"small": "SMALL", "mid": "MID", "table": "TABLE", "124m": "GPT2"})
"""By the name on the command line, the settings of ``speed_tasks/nanogpt.py``."""
PLAIN: Final = "plain"
LONGEST_SECONDS: Final = 900.0
WARM_UP_STEPS: Final = 5
_INT8: Final = CodecSpec(name=CodecName.INT8)
_PIPELINE: Final = MappingProxyType({"pipeline": True, "max_staleness": 1})
MODES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "weights": {},
        "weights-pipeline": _PIPELINE,
        "diloco-int8": {**_PIPELINE, "outer": DILOCO, "update_codec": _INT8, "weights_codec": _INT8},
    }
)
"""Recipe fields of each mode but ``PLAIN``, which is the loop without a farm."""


@dataclass(frozen=True)
class WholeRun(Measurement):
    """What one mode gave, from the opening of the first round to the last commit.

    ``steady_ratio`` is from the first commit to the last, so without what happens once: weights and code to the client,
    model and data built; None for the plain loop.
    """

    mode: str
    model: str
    device: str
    samples_per_s: float
    plain_samples_per_s: float
    ratio: float
    steady_ratio: float | None
    tokens_per_s: float
    mfu: float
    steps: int
    rounds: int
    round_s: list[float]
    """Seconds from commit to commit; of the first round from its opening."""
    stages_s: dict[str, float]
    """Where the rounds' time went, added up over them: what a pipelined task's steps hide counts too."""


@dataclass(frozen=True)
class Length:
    """So many rounds of so many steps of a shape of the model."""

    shape: str
    device: str
    steps: int
    rounds: int

    @property
    def config(self) -> dict[str, Any]:
        """The task's settings: every sample is trained on once."""
        shape: dict[str, Any] = getattr(task_module("nanogpt"), SHAPES[self.shape])
        return {**shape, "rows": self.rounds * self.steps * shape["batch"]}


def measure(length: Length, modes: Sequence[str], threads: int = 1) -> Iterator[WholeRun]:
    """Measure the plain loop and each mode in turns: a mode's plain figure is the mean of the rounds around it.

    Raises: BenchmarkError, DaemonFailed.
    """
    with tempfile.TemporaryDirectory(prefix="aifarm-whole-") as name:
        folder = Path(name)
        prepared = _prepare(length, folder / "task")
        with plain_loop("nanogpt", length.config, length.device, threads, folder) as plain:
            plain.seconds(WARM_UP_STEPS)
            before = plain.seconds(length.steps)
            if PLAIN in modes:
                yield _measured(PLAIN, length, plain.about, before, _Rounds([before], {}))
            for mode in modes:
                if mode != PLAIN:
                    rounds = _run(mode, length, prepared, folder / mode)
                    after = plain.seconds(length.steps)
                    yield _measured(mode, length, plain.about, (before + after) / 2, rounds)
                    before = after


def _prepare(length: Length, folder: Path) -> Prepared:
    folder.mkdir()
    config = length.config
    recipe = Recipe(
        mode=Mode.WEIGHTS,
        rounds=length.rounds,
        round_samples=length.steps * config["batch"],
        batch_samples=config["batch"],
        inner_state=InnerState.KEPT,
        evaluate_every=0,
        keep_checkpoints=1,
    )
    submission = Submission(code=TASK, recipe=recipe, config=config, name="whole", samples=config["rows"], check=False)
    return prepare(submission, folder)


class _Rounds(NamedTuple):
    seconds: list[float]
    stages: dict[str, float]


def _run(mode: str, length: Length, prepared: Prepared, folder: Path) -> _Rounds:
    """Train on a farm of one client, and return the seconds of each round, and of each stage in all."""
    with running_farm(1, folder) as farm:
        upload(farm.api, prepared.blobs)
        recipe = prepared.spec.recipe.model_copy(update=dict(MODES[mode]))
        task_id = farm.api.submit(prepared.spec.model_copy(update={"recipe": recipe})).task.task_id
        rounds: dict[int, RoundView] = {}

        def is_done() -> bool:
            farm.processes.check()
            detail = farm.api.task(task_id)
            rounds.update({r.number: r for r in detail.rounds if r.committed_at is not None})
            return is_over(detail.task)

        wait_until(is_done, LONGEST_SECONDS, lambda: f"the task is not done: {farm.api.why(task_id)}")
        seconds = _round_seconds(farm, task_id, [rounds[number] for number in sorted(rounds)], length.rounds)
        return _Rounds(seconds, stage_seconds(farm.processes.address))


def _round_seconds(farm: RunningFarm, task_id: str, rounds: Sequence[RoundView], expected: int) -> list[float]:
    if len(rounds) != expected:
        task = farm.api.task(task_id).task
        raise BenchmarkError(f"{len(rounds)} of {expected} rounds are known; the task {task.state}: {task.error}")
    committed = [r.committed_at or 0.0 for r in rounds]
    before = [committed[0] - (rounds[0].seconds or 0.0), *committed]
    return [at - earlier for at, earlier in zip(committed, before, strict=False)]


def _measured(mode: str, length: Length, about: About, plain_round_s: float, rounds: _Rounds) -> WholeRun:
    round_s = rounds.seconds
    batch, context = length.config["batch"], length.config["context"]
    rate = length.steps * batch * len(round_s) / sum(round_s)
    return WholeRun(
        benchmark="whole",
        mode=mode,
        model=length.shape,
        device=length.device,
        samples_per_s=rate,
        plain_samples_per_s=length.steps * batch / plain_round_s,
        ratio=plain_round_s / mean(round_s),
        steady_ratio=plain_round_s / mean(round_s[1:]) if round_s[1:] else None,
        tokens_per_s=rate * context,
        mfu=rate * about.flops_per_sample / about.peak_flops,
        steps=length.steps,
        rounds=len(round_s),
        round_s=round_s,
        stages_s=rounds.stages,
    )
