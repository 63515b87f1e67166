"""The researcher who notices nothing: submits task after task, whatever dies, and judges each by its end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.farm import BenchmarkError
from benchmarks.mortal_farm import MortalFarm
from benchmarks.regression import (
    AVERAGING,
    Regression,
    prepare_regression,
    pull_weights,
    relative_difference,
    submit_prepared,
    unbalanced,
)
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared
from protocol.errors import FarmError, NotFound

IN_FLIGHT: Final = 2
PAUSE_SECONDS: Final = 0.2
TOLERANCE: Final = 1e-9
UNDISTURBED_SECONDS: Final = 60.0

_ROUND = {"rounds": 8, "round_samples": 32, "batch_samples": 4, "rounds_per_epoch": 4}
SMALL: Final = Regression(batch_seconds=0.05, **_ROUND)
LARGE: Final = Regression(batch_seconds=0.05, features=20_000, **_ROUND)
"""Its updates do not fit into a message: they are spooled on both sides."""


@dataclass(frozen=True)
class Kind:
    """One kind of task, and the weights of its undisturbed run (None: they differ from run to run)."""

    name: str
    prepared: Prepared
    samples: int
    expected: dict[str, np.ndarray] | None
    recipe: dict[str, object] = field(default_factory=dict)


@dataclass
class Verdict:
    """What all tasks came to."""

    completed: int = 0
    exact: int = 0
    largest_difference: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Add what another task came to."""
        self.completed += other.completed
        self.exact += other.exact
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.complaints += other.complaints


class Researcher:
    """Keeps some tasks in flight, in a thread of its own: a frozen server must not keep chaos from waking it."""

    def __init__(self, farm: MortalFarm, folder: Path, say: Callable[[str], None]) -> None:
        self._farm = farm
        self._folder = folder
        self._say = say
        small, large = self._kind("gradients", SMALL), self._kind("large", LARGE)
        weights = Kind("weights", small.prepared, small.samples, None, dict(AVERAGING))
        self._kinds = [small, large, weights]
        self._tasks: dict[str, Kind] = {}
        """Those that are not judged yet."""
        self._judged_ids: list[str] = []
        """Those that are judged, and to be removed."""
        self._verdict = Verdict()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work, name="researcher")
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()

    def finish(self, seconds: float) -> Verdict:
        """Submit no more, wait so long for what is in flight, and judge the rest. Raises: what broke the submitting."""
        self._enough.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        try:
            self._farm.wait_for(lambda: not self._running(), "every task ends", seconds)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}; {self._standing()}") from None
        for task_id, kind in self._tasks.items():
            self._verdict.add(self._judged(task_id, kind))
        return self._verdict

    def _work(self) -> None:
        try:
            for number in itertools.count():
                while not self._has_room():
                    if self._enough.wait(PAUSE_SECONDS):
                        return
                self._judge_what_ended()
                self._submit(self._kinds[number % len(self._kinds)], number)
        except BaseException as error:
            self._failure = error

    def _submit(self, kind: Kind, number: int) -> None:
        """Ask again until it is answered: the name is the submit token too, so that there is one task in the end."""
        name = f"{kind.name}-{number}"
        while (
            task_id := self._farm.ask(lambda: submit_prepared(self._farm.api, kind.prepared, name, **kind.recipe))
        ) is None:
            if self._enough.wait(PAUSE_SECONDS):
                return
        self._say(f"submitted {name} as {task_id}")
        self._tasks[task_id] = kind

    def _judge_what_ended(self) -> None:
        """Judge and remove the tasks that are over, or the server's small disk would hold the models of all of them.

        What can't be asked now, because something is broken, is asked the next time.
        """
        with suppress(FarmError):
            for task_id, kind in list(self._tasks.items()):
                if is_over(self._farm.api.task(task_id).task):
                    self._judge_one(task_id, kind)
            for task_id in list(self._judged_ids):
                with suppress(NotFound):  # the answer to an earlier removal was lost
                    self._farm.api.remove(task_id)
                self._judged_ids.remove(task_id)

    def _judge_one(self, task_id: str, kind: Kind) -> None:
        judged = self._judged(task_id, kind)
        if not judged.complaints:  # else it is kept for a look, and judged again at the end
            self._verdict.add(judged)
            del self._tasks[task_id]
            self._judged_ids.append(task_id)

    def _has_room(self) -> bool:
        running = self._farm.ask(self._running)
        return running is not None and len(running) < IN_FLIGHT

    def _running(self) -> list[str]:
        return [task.task_id for task in self._farm.api.active_tasks() if not is_over(task)]

    def _standing(self) -> str:
        """Say what is open, and what each of it waits for."""
        open_tasks = [task for task in self._farm.api.active_tasks() if not is_over(task)]
        clients = [f"{client.name} {client.state} {client.reason}" for client in self._farm.api.clients()]
        tasks = [f"{task.name} is {task.state} in round {task.round}: {task.why}" for task in open_tasks]
        return "; ".join([*tasks, *clients])

    def _kind(self, name: str, what: Regression) -> Kind:
        """Prepare a kind of task, and let it run undisturbed once."""
        prepared = prepare_regression(what, self._folder / name)
        task_id = submit_prepared(self._farm.api, prepared, f"undisturbed-{name}", batch_seconds=0.0)
        self._farm.wait_for(
            lambda: self._farm.api.task(task_id).task.state == "completed", f"{name} undisturbed", UNDISTURBED_SECONDS
        )
        return Kind(name, prepared, what.samples, pull_weights(self._farm.api, task_id, self._folder))

    def _judged(self, task_id: str, kind: Kind) -> Verdict:
        api, verdict = self._farm.api, Verdict()
        task = api.task(task_id).task
        if task.state != "completed":
            verdict.complaints.append(f"{task.name} ({task_id}) {task.state}: {task.error or task.why}")
            return verdict
        verdict.completed = 1
        wrong = unbalanced(api.shards(task_id), kind.samples)
        verdict.complaints += [f"{task.name} ({task_id}): {complaint}" for complaint in wrong]
        if kind.expected is None:
            return verdict
        verdict.largest_difference = relative_difference(pull_weights(api, task_id, self._folder), kind.expected)
        verdict.exact = int(verdict.largest_difference <= TOLERANCE)
        if not verdict.exact:
            difference = verdict.largest_difference
            verdict.complaints.append(f"{task.name} ({task_id}): its weights differ by {difference:.1e}")
        return verdict
