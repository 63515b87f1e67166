"""Running a sweep: trials are submitted as ordinary tasks, watched, given up where they do badly, and compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from farm_client.sdk.api import FarmApi
from farm_client.sdk.feeds import read_all
from farm_client.sdk.outcome import TaskOutcome, is_over, outcome_of
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.sweeping.plan import SweepPlan, Value, assignment
from farm_client.sdk.sweeping.study import Study, TrialState, TrialView
from protocol.errors import Conflict, NotFound

LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True)
class SweepView:
    """A sweep as it stands. ``best``: the number of the complete trial with the best value."""

    name: str
    metric: str
    direction: str
    most_trials: int
    trials: tuple[TrialView, ...]

    @property
    def best(self) -> TrialView | None:
        """Return the complete trial with the best evaluation; the first of equal ones."""
        done = [one for one in self.trials if one.state is TrialState.COMPLETE and one.values]
        sign = 1 if self.direction == "max" else -1
        return max(done, key=lambda one: sign * (one.best(self.direction) or 0.0), default=None)

    def record(self) -> dict[str, Any]:
        """Return it for programs."""
        best = self.best
        trials = [
            {**asdict(one), "settings": dict(one.settings), "value": one.best(self.direction)} for one in self.trials
        ]
        return {**asdict(replace(self, trials=())), "trials": trials, "best": None if best is None else best.number}


class TrialTasks(Protocol):
    """The farm as a sweep sees it."""

    def submit(self, settings: Mapping[str, Value], name: str, token: str) -> str:
        """Submit a task with these settings, and return its id; a token that the farm knows gives its task."""

    def evaluations(self, task_id: str) -> list[float]:
        """Return the metric's evaluations so far, oldest first."""

    def ended(self, task_id: str) -> TaskOutcome | None:
        """Return how the task ended; None if it is not over."""

    def cancel(self, task_id: str) -> None:
        """End the task, unless it is over."""


class FarmTrials:
    """Trials as tasks of a real farm. Code and data are sent with the first one: the farm has them by digest then."""

    def __init__(
        self,
        api: FarmApi,
        plan: SweepPlan,
        describe: Callable[[list[str]], Submission],
        send: Callable[[Prepared], str],
    ) -> None:
        self._api = api
        self._plan = plan
        self._describe = describe
        self._send = send
        self._is_checked = False

    def submit(self, settings: Mapping[str, Value], name: str, token: str) -> str:
        """See ``TrialTasks``. The code is tried on a batch for the first trial. Raises: as ``prepare``, ``upload``."""
        described = self._describe([assignment(key, value) for key, value in settings.items()])
        check = described.check and not self._is_checked
        recipe = described.recipe
        if recipe.keep_best is None:  # so that a metric that is not measured is refused, and the best model stays
            recipe = recipe.model_copy(update={"keep_best": f"{self._plan.direction}:{self._plan.metric}"})
        submission = replace(described, recipe=recipe, name=name, submit_token=token, check=check)
        with tempfile.TemporaryDirectory(prefix="aifarm-sweep-") as folder:
            task_id = self._send(prepare(submission, Path(folder)))
        self._is_checked = True
        return task_id

    def evaluations(self, task_id: str) -> list[float]:
        """See ``TrialTasks``."""
        found = read_all(self._api.metrics, task_id)
        return [one.value for one in found if (one.source, one.name) == ("eval", self._plan.metric)]

    def ended(self, task_id: str) -> TaskOutcome | None:
        """See ``TrialTasks``. A task that was removed from the farm counts as cancelled."""
        try:
            task = self._api.task(task_id).task
        except NotFound:
            return TaskOutcome.CANCELLED
        return outcome_of(task) if is_over(task) else None

    def cancel(self, task_id: str) -> None:
        """See ``TrialTasks``."""
        with suppress(Conflict, NotFound):
            self._api.act(task_id, "cancel")


class Sweep:
    """One sweep, over a study that may have been begun before."""

    def __init__(
        self, plan: SweepPlan, study: Study, tasks: TrialTasks, clock: Callable[[], float] = time.time
    ) -> None:
        self._plan = plan
        self._study = study
        self._tasks = tasks
        self._clock = clock

    def view(self) -> SweepView:
        """Return how it stands."""
        plan = self._plan
        return SweepView(plan.name, plan.metric, plan.direction, plan.most_trials, tuple(self._study.trials()))

    def run(self, pause: Callable[[float], None] = time.sleep) -> Iterator[SweepView]:
        """Yield how it stands after each look, until all trials are over. Raises: what submitting a trial raises."""
        while True:
            for trial in self._running():
                self._look_at(trial)
            self._fill_up()
            yield self.view()
            if not self._running():
                return
            pause(LOOK_SECONDS)

    def cancel(self) -> None:
        """Cancel the tasks of all trials that run, and give those up."""
        for trial in self._running():
            if trial.task_id is not None:
                self._tasks.cancel(trial.task_id)
            self._study.end(trial, TrialState.FAILED)

    def _running(self) -> list[TrialView]:
        return [trial for trial in self._study.trials() if trial.state is TrialState.RUNNING]

    def _fill_up(self) -> None:
        """Begin as many trials as there is room for."""
        while self._has_more() and len(self._running()) < self._plan.at_once:
            self._submit(self._study.ask())

    def _has_more(self) -> bool:
        limit = self._plan.max_seconds
        if limit is not None and self._clock() - self._study.began_at > limit:
            return False
        return len(self._study.trials()) < self._plan.most_trials

    def _submit(self, trial: TrialView) -> str:
        name, token = f"{self._plan.name}/{trial.number}", self._study.token(trial.number)
        task_id = self._tasks.submit(trial.settings, name, token)
        self._study.submitted(trial.number, task_id)
        return task_id

    def _look_at(self, trial: TrialView) -> None:
        """Note a trial's new evaluations, and end it if it is over or does badly."""
        task_id = trial.task_id or self._submit(trial)  # a crash came before its task was written down
        ended = self._tasks.ended(task_id)  # asked for first: what is over has no evaluation later
        values = self._tasks.evaluations(task_id)
        is_given_up = trial.is_being_pruned
        for index in range(len(trial.values), len(values)):
            if not is_given_up:
                self._study.evaluated(trial.number, index + 1, values[index])
                is_given_up = ended is None and self._study.should_prune(trial.number)
        known = trial.values if trial.is_being_pruned else tuple(values)
        if is_given_up:
            self._tasks.cancel(task_id)
            self._study.end(trial, TrialState.PRUNED)
        elif ended is TaskOutcome.COMPLETED:
            self._study.end(replace(trial, values=known), TrialState.COMPLETE)
        elif ended is not None:
            self._study.end(trial, TrialState.FAILED)
