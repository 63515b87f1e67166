"""Seconds from a SIGKILL to the next committed round, for the server and for a client that is at work."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import POLL_SECONDS, MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared
from farm_client.agent.connection.reconnect_policy import STEADY_SECONDS
from farm_client.sdk.outcome import is_over
from protocol.rest import RoundView


class Victim(StrEnum):
    """Who is killed."""

    SERVER = "server"
    CLIENT = "client"


TASK: Final = Regression(
    rounds=1_000_000, round_samples=32, batch_samples=4, batch_seconds=0.1, rounds_per_epoch=64, min_clients=2
)
"""Two clients, eight batches: a round takes under half a second. It is ended, not finished."""
CLIENTS: Final = 2
REFERENCE_ROUNDS: Final = 5
SETTLED_ROUNDS: Final = 2
"""Committed after a recovery, with all clients back, before the next kill."""
SETTLED_SECONDS: Final = STEADY_SECONDS + 1.0
"""How long clients are back before it, too: they spare a server that drops them sooner, again and again."""
LONGEST_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Recovery(Measurement):
    """One victim's kills. ``round_s`` is the median undisturbed round of the same run, ``ratio`` how many that cost."""

    victim: Victim
    kills: int
    recovery_s: float
    """The median."""
    fastest_s: float
    slowest_s: float
    round_s: float
    ratio: float


def measure(victim: Victim, kills: int, seed: int = 0) -> Recovery:
    """Kill the server or one of two clients so many times, each at a random moment of a round.

    The killed process is started again at once, as a supervisor does. Raises: BenchmarkError, DaemonFailed.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="aifarm-recovery-") as name:
        folder = Path(name)
        prepared = prepare_regression(TASK, folder / "task")
        with mortal_farm(folder / "farm", CLIENTS) as farm:
            task_id = submit_prepared(farm.api, prepared)
            _settle(farm, task_id, REFERENCE_ROUNDS)
            round_s = _median_round_seconds(farm, task_id)
            took = []
            for _ in range(kills):
                time.sleep(chance.uniform(0, round_s))
                took.append(_kill_once(farm, task_id, victim))
                _settle(farm, task_id, SETTLED_ROUNDS)
            farm.api.act(task_id, "cancel")
    recovery_s = statistics.median(took)
    return Recovery("recovery", victim, kills, recovery_s, min(took), max(took), round_s, recovery_s / round_s)


def _kill_once(farm: MortalFarm, task_id: str, victim: Victim) -> float:
    """Return the seconds until a round was committed, by the server's clock, which is this machine's."""
    killed_at = time.time()
    farm.kill(farm.server if victim is Victim.SERVER else farm.clients["client-1"])
    farm.revive()
    farm.wait_for(lambda: _newest_commit(farm, task_id) > killed_at, "a round is committed", LONGEST_SECONDS)
    after = [r.committed_at for r in _rounds(farm, task_id) if r.committed_at and r.committed_at > killed_at]
    return min(after) - killed_at


def _settle(farm: MortalFarm, task_id: str, rounds: int) -> None:
    """Wait until all clients are back, and then for so many more committed rounds and some seconds."""
    farm.wait_online(*farm.clients)
    since = time.time()
    farm.wait_for(
        lambda: sum((r.committed_at or 0) > since for r in _rounds(farm, task_id)) >= rounds,
        f"{rounds} rounds are committed",
        LONGEST_SECONDS,
    )
    time.sleep(max(POLL_SECONDS, since + SETTLED_SECONDS - time.time()))


def _rounds(farm: MortalFarm, task_id: str) -> tuple[RoundView, ...]:
    """Return the newest rounds. Raises: BenchmarkError if the task ended."""
    detail = farm.api.task(task_id)
    if is_over(detail.task):
        raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
    return detail.rounds


def _newest_commit(farm: MortalFarm, task_id: str) -> float:
    return max((r.committed_at or 0.0 for r in _rounds(farm, task_id)), default=0.0)


def _median_round_seconds(farm: MortalFarm, task_id: str) -> float:
    """Return the median time from one commit to the next, the first round apart."""
    commits = sorted(r.committed_at for r in _rounds(farm, task_id) if r.committed_at)
    return statistics.median(later - earlier for earlier, later in pairwise(commits[1:]))
