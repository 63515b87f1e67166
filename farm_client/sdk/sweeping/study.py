"""A sweep's trials in a folder that outlives the process: Optuna's study, in its journal file.

What a trial tries is written before its task is submitted, with the token that it is submitted by. So whoever goes on
after a crash submits nothing twice: the farm answers a token that it knows with the task that it made.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from farm_client.sdk.errors import MissingLibrary
from farm_client.sdk.sweeping.plan import PrunerName, Range, SamplerName, SweepPlan, Value
from protocol.errors import Conflict

if TYPE_CHECKING:
    import optuna

JOURNAL: Final = "study.journal"
_TASK, _PRUNED, _TOKEN, _PLAN, _BEGAN, _GRID = "task_id", "pruned", "token", "plan", "began_at", "grid"


class TrialState(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class TrialView:
    """One trial: what it tries, its task on the farm (None before it is submitted), and its evaluations so far."""

    number: int
    state: TrialState
    settings: Mapping[str, Value]
    task_id: str | None
    values: tuple[float, ...]
    is_being_pruned: bool

    def best(self, direction: str) -> float | None:
        """Return its best evaluation."""
        return (max if direction == "max" else min)(self.values, default=None)


class Study:
    """The trials of a sweep. ``open`` makes it, or goes on with the one that is in the folder."""

    def __init__(self, study: optuna.Study, plan: SweepPlan) -> None:
        self._study = study
        self._plan = plan
        self._distributions = {key: _distribution(values) for key, values in plan.space.items()}

    @classmethod
    def open(cls, folder: Path, plan: SweepPlan, now: float) -> Study:
        """Open the study in a folder, which is made. ``now``: Unix seconds.

        Raises: MissingLibrary without Optuna; Conflict if the folder has a study of another space or metric.
        """
        optuna = _optuna()
        folder.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(
            str(folder / JOURNAL), lock_obj=optuna.storages.journal.JournalFileOpenLock(str(folder / JOURNAL))
        )
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="sweep",
            direction="maximize" if plan.direction == "max" else "minimize",
            sampler=_sampler(optuna, plan),
            pruner=_pruner(optuna, plan),
            load_if_exists=True,
        )
        known, asked = study.user_attrs, plan.model_dump(mode="json", include={"metric", "direction", "space"})
        if _PLAN in known and known[_PLAN] != asked:
            raise Conflict(f"{folder} has a sweep of another space or metric: give another folder with --study")
        for key, value in ((_TOKEN, uuid.uuid4().hex), (_BEGAN, now), (_PLAN, asked)):
            if key not in known:
                study.set_user_attr(key, value)
        opened = cls(study, plan)
        opened._settle_unfinished()
        if plan.sampler is SamplerName.GRID:
            for settings in plan.combinations():
                study.enqueue_trial(settings, skip_if_exists=True)
        return opened

    @property
    def began_at(self) -> float:
        """When the sweep first began, in Unix seconds."""
        return float(self._study.user_attrs[_BEGAN])

    def token(self, number: int) -> str:
        """Return what a trial's task is submitted by: a repeat makes no second task."""
        return f"sweep-{self._study.user_attrs[_TOKEN]}-{number}"

    def trials(self) -> list[TrialView]:
        """Return all trials that began, in their order."""
        shown = {"RUNNING": TrialState.RUNNING, "COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED}
        return [
            TrialView(
                trial.number,
                shown.get(trial.state.name, TrialState.FAILED),
                trial.params,
                trial.user_attrs.get(_TASK),
                tuple(value for _, value in sorted(trial.intermediate_values.items())),
                _PRUNED in trial.user_attrs,
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name != "WAITING" and not (trial.state.name == "FAIL" and _TASK not in trial.user_attrs)
        ]

    def ask(self) -> TrialView:
        """Begin a trial: its settings are chosen and written down."""
        number = self._study.ask(self._distributions).number
        return next(trial for trial in self.trials() if trial.number == number)

    def submitted(self, number: int, task_id: str) -> None:
        """Write down which task a trial is."""
        self._trial(number).set_user_attr(_TASK, task_id)

    def evaluated(self, number: int, index: int, value: float) -> None:
        """Write down a trial's evaluation, the first one's ``index`` being 1."""
        self._trial(number).report(value, index)

    def should_prune(self, number: int) -> bool:
        """Return whether the pruner gives a trial up; that is written down before anything follows from it."""
        if not self._trial(number).should_prune():
            return False
        self._trial(number).set_user_attr(_PRUNED, True)
        return True

    def end(self, trial: TrialView, state: TrialState) -> None:
        """End a trial: its value is its best evaluation."""
        states = _optuna().trial.TrialState
        value = trial.best(self._plan.direction)
        if state is TrialState.COMPLETE and value is not None:
            self._study.tell(trial.number, value)
        else:
            self._study.tell(trial.number, state=states.PRUNED if state is TrialState.PRUNED else states.FAIL)

    def _settle_unfinished(self) -> None:
        """Give up trials whose settings were cut short by a crash: nothing was submitted of them."""
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and trial.settings.keys() != self._plan.space.keys():
                self.end(trial, TrialState.FAILED)

    def _trial(self, number: int) -> optuna.Trial:
        trials = self._study.get_trials(deepcopy=False)
        trial: optuna.Trial = _optuna().Trial(self._study, trials[number]._trial_id)
        return trial


def _optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise MissingLibrary("a sweep needs Optuna: pip install 'aifarm[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(values: Range | tuple[Value, ...]) -> Any:
    distributions = _optuna().distributions
    if isinstance(values, tuple):
        return distributions.CategoricalDistribution(values)
    if values.is_whole:
        return distributions.IntDistribution(
            int(values.low), int(values.high), log=values.log, step=int(values.step or 1)
        )
    return distributions.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _sampler(optuna: Any, plan: SweepPlan) -> Any:
    if plan.sampler is SamplerName.TPE:
        return optuna.samplers.TPESampler(seed=plan.seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=plan.seed)


def _pruner(optuna: Any, plan: SweepPlan) -> Any:
    if plan.pruner is PrunerName.MEDIAN:
        return optuna.pruners.MedianPruner(n_startup_trials=plan.startup)
    if plan.pruner is PrunerName.HALVING:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=plan.reduction)
    return optuna.pruners.NopPruner()
