"""Seconds from a SIGKILL of the server until a crowd of thousands is back, and what of its open rounds is left then."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.crowd import Crowd, running_crowd
from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared
from benchmarks.report import say
from farm_client.agent.connection.reconnect_policy import STEADY_SECONDS
from protocol.recipe import Requirements
from protocol.rest import TaskDetail

HOLDERS: Final = 5
"""Clients with the tag of each task."""
TASK: Final = Regression(
    rounds=1_000_000, round_samples=HOLDERS * 400, batch_samples=4, rounds_per_epoch=1, min_clients=HOLDERS
)
"""Parts so large that a report of one sample more with each beat lasts for the whole measurement."""
LONGEST_ROUND_SECONDS: Final = 3600.0
JOIN_SECONDS: Final = 300.0
SETTLED_SECONDS: Final = STEADY_SECONDS + 2.0
"""How long all are back before the next kill: a connection that ended sooner would count as a failed one."""
RECOVERED_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Comeback(Measurement):
    """All kills; seconds are from the kill. Where there are two numbers they are the median and the worst."""

    clients: int
    open_tasks: int
    waiting_tasks: int
    kills: int
    serving_s: tuple[float, float]
    back_s: tuple[float, float]
    """Until the last client was welcomed again."""
    sent_away: tuple[float, float]
    """Answers of 503: come again when it is your turn."""
    timed_out: tuple[float, float]
    """Tries that were not welcomed in the time that an agent waits."""
    open_rounds: int
    """Of the open tasks': those that are held again by all who held them, after each kill."""
    attempts_spent: int
    """Rounds that were opened anew, and retries, of all tasks."""
    crowd_cpu: tuple[float, float]
    """What the crowd's process used of one core until all were back, of those that the server uses too."""


@dataclass(frozen=True)
class Kill:
    """What one came to."""

    serving_s: float
    back_s: float
    sent_away: int
    timed_out: int
    crowd_cpu: float
    tasks: Sequence[TaskDetail]
    """The open tasks, when all were back."""


def measure(clients: int, open_tasks: int, waiting_tasks: int, kills: int) -> Comeback:
    """Kill the server so many times, and start it again at once, as a supervisor does.

    Raises: BenchmarkError, DaemonFailed.
    """
    if (fewest := HOLDERS * (open_tasks + waiting_tasks)) > clients:
        raise BenchmarkError(f"so many tasks need {fewest} clients, {HOLDERS} for each")
    open_tags = [f"open-{number}" for number in range(open_tasks)]
    waiting_tags = [f"waiting-{number}" for number in range(waiting_tasks)]
    with tempfile.TemporaryDirectory(prefix="aifarm-comeback-") as name:
        folder = Path(name)
        prepared = prepare_regression(TASK, folder / "task")
        environ = {"FARM_SERVER_MAX_CLIENTS": str(clients)}
        with mortal_farm(folder / "farm", 0, environ) as farm:
            task_ids = {
                tag: submit_prepared(
                    farm.api,
                    prepared,
                    tag,
                    requirements=Requirements(tags=(tag,)),
                    min_clients=HOLDERS + (tag in waiting_tags),
                    longest_round_seconds=LONGEST_ROUND_SECONDS,
                )
                for tag in (*open_tags, *waiting_tags)
            }
            held = [task_ids[tag] for tag in open_tags]
            with running_crowd(farm.join_url, clients, folder, tuple(task_ids), HOLDERS) as crowd:
                crowd.wait_online(JOIN_SECONDS)
                _wait_until_held(farm, held)
                done = [_kill(farm, crowd, held) for _ in range(kills)]
    return Comeback(
        benchmark="comeback",
        clients=clients,
        open_tasks=open_tasks,
        waiting_tasks=waiting_tasks,
        kills=kills,
        serving_s=_both([kill.serving_s for kill in done]),
        back_s=_both([kill.back_s for kill in done]),
        sent_away=_both([kill.sent_away for kill in done]),
        timed_out=_both([kill.timed_out for kill in done]),
        open_rounds=min(sum(map(_is_held, kill.tasks)) for kill in done),
        attempts_spent=max(sum(map(_attempts_spent, kill.tasks)) for kill in done),
        crowd_cpu=_both([kill.crowd_cpu for kill in done]),
    )


def _kill(farm: MortalFarm, crowd: Crowd, task_ids: Sequence[str]) -> Kill:
    time.sleep(SETTLED_SECONDS)
    say("killing the server …")
    process, before = psutil.Process(crowd.pid), crowd.counts
    cpu_before, killed_at = sum(process.cpu_times()[:2]), time.time()
    farm.kill(farm.server)
    farm.start_server()
    serving_s = time.time() - killed_at
    after = crowd.wait_online(JOIN_SECONDS, before)
    back_s = after.at - killed_at
    crowd_cpu = (sum(process.cpu_times()[:2]) - cpu_before) / back_s
    tasks = _recovered(farm, task_ids)
    return Kill(
        serving_s, back_s, after.sent_away - before.sent_away, after.timed_out - before.timed_out, crowd_cpu, tasks
    )


def _wait_until_held(farm: MortalFarm, task_ids: Sequence[str]) -> None:
    def all_are() -> bool:
        return all(_is_held(farm.api.task(task_id)) for task_id in task_ids)

    farm.wait_for(all_are, "clients hold a round of each task")


def _recovered(farm: MortalFarm, task_ids: Sequence[str]) -> list[TaskDetail]:
    """Return the tasks once their rounds are held as before, or as they are when that did not come to pass."""
    deadline = time.monotonic() + RECOVERED_SECONDS
    while True:
        tasks = [farm.api.task(task_id) for task_id in task_ids]
        if all(map(_is_held, tasks)) or time.monotonic() > deadline:
            return tasks
        time.sleep(0.5)


def _is_held(detail: TaskDetail) -> bool:
    """Whether the task's one round is open and held by all clients that may."""
    states = [view.state for view in detail.rounds]
    return detail.task.state == "running" and states == ["open"] and detail.task.clients == HOLDERS


def _attempts_spent(detail: TaskDetail) -> int:
    """Count the rounds that were opened anew, and the retries; nothing is ever committed."""
    return max(len(detail.rounds) - 1, 0) + detail.task.retries


def _both(values: Sequence[float]) -> tuple[float, float]:
    return median(values), max(values)
