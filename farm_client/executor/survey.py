"""A rehearsal's look at what the farm will leave out of a task's code: before, while and after a batch is tried."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Final

import torch

from farm_client.executor import lightning_steps
from farm_client.executor.failures import calling
from farm_client.executor.layout import ModelTensors
from farm_client.executor.lightning_hooks import CALLED_BY_LOCAL_STEPS, CALLED_IN_BOTH_MODES, unused_hooks
from farm_client.executor.omissions import SCHEDULE, Omission
from farm_client.executor.on_server import left_with_the_client, own_steps
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.runner import TaskRunner
from farm_client.executor.schedules import by_metric_schedule, progress_of, unstepped_schedule
from farm_client.executor.timeline import Scheduled
from protocol.recipe import InnerState, Mode

CONTRACT_FUNCTIONS: Final = (
    "build_model",
    "loss",
    "build_optimizer",
    "build_scheduler",
    "evaluate",
    "load_shard",
    "make_dataset",
    "train_step",
    "on_before_step",
    "collate_fn",
    "initial_state",
)
_CLOSE: Final = 0.8
_OF_OTHERS: Final = frozenset({"configure_optimizers", "training_step"})
"""What other trainers call in a module; the farm does not."""


class Survey:
    """Gathers a task's omissions. Begin after the model and the optimizer are built."""

    def __init__(self, runner: TaskRunner, optimizers: Optimizers, mode: Mode) -> None:
        self._runner = runner
        self._mode = mode
        self._fresh = progress_of(optimizers)
        self._schedule = unfollowed_schedule(runner, optimizers)
        self._found = [*_static(runner, optimizers, mode)]

    def before(self) -> list[Omission]:
        """Return what shows without trying a batch; a schedule that the code may step by itself only if it cannot."""
        own_steps_count = self._mode is Mode.WEIGHTS
        return [*self._found] if own_steps_count else self.all()

    def all(self) -> list[Omission]:
        """Return all that was found."""
        return [*self._found, *([] if self._schedule is None else [self._schedule])]

    def watch_training(self, train: Callable[[], None]) -> None:
        """Run a training assignment and look at what it left behind."""
        train()
        if names := self._runner.changed_by_code():
            self._found.append(_lost_change(names))
        if self._schedule is not None and self._mode is Mode.WEIGHTS and self._is_stepped_by_the_code():
            self._schedule = None

    def _is_stepped_by_the_code(self) -> bool:
        trained_with = self._runner.optimizers
        return trained_with is not None and progress_of(trained_with) != self._fresh


def unfollowed_schedule(runner: TaskRunner, optimizers: Optimizers) -> Omission | None:
    """Return the schedule that the farm will not follow; None if there is none, or it follows it."""
    if runner.timeline() is not None:
        return None
    if runner.contract.is_manual(runner.tensors.model):
        return None
    schedulers: tuple[Scheduled, ...] = ()
    if runner.contract.has_schedulers(runner.tensors.model):
        optimizers, schedulers = runner.build_scheduled()
    by_metric = [type(one.scheduler).__name__ for one in schedulers if one.needs_metric]
    if by_metric:
        return by_metric_schedule(by_metric[0])
    return unstepped_schedule(optimizers, progress_of(optimizers))


def _restarted_schedule(runner: TaskRunner, optimizers: Optimizers) -> Iterator[Omission]:
    """Yield the schedule that a module steps itself, and that begins anew each round."""
    schedulers = lightning_steps.manual_schedulers(next(iter(optimizers)))
    if not schedulers or runner.inner_state is not InnerState.FRESH:
        return
    yield Omission(
        SCHEDULE,
        f"the scheduler {type(schedulers[0]).__name__} of manual optimization would begin anew in each round: say "
        'inner_state = "carried"',
        changes_training=True,
    )


def _called_hooks(runner: TaskRunner, mode: Mode) -> frozenset[str]:
    steps = mode is Mode.WEIGHTS and runner.contract.takes_lightnings_steps(runner.tensors.model)
    called = CALLED_IN_BOTH_MODES | (CALLED_BY_LOCAL_STEPS if steps else frozenset())
    return frozenset(n for n in called if "validation" not in n) if runner.contract.has("evaluate") else called


def _static(runner: TaskRunner, optimizers: Optimizers, mode: Mode) -> Iterator[Omission]:
    model = runner.tensors.model
    yield from _not_in_the_file(runner)
    if lightning_steps.is_lightning(model):
        yield from unused_hooks(model, _called_hooks(runner, mode))
    if runner.contract.is_manual(model) and mode is Mode.WEIGHTS:
        yield from _restarted_schedule(runner, optimizers)
    yield from _never_called(runner.contract.module)
    for optimizer in optimizers:
        yield from foreign_parameters(optimizer, runner.tensors)
        yield from resting_rate(optimizer)
    if mode is Mode.GRADIENTS:
        yield from own_steps(runner.contract, model)
    if mode is Mode.GRADIENTS and len(optimizers.by_name) == 1:
        yield from left_with_the_client(optimizers.only, runner.tensors)


def _not_in_the_file(runner: TaskRunner) -> Iterator[Omission]:
    """Try what `farm pull` promises: that the model loads the file, strictly."""
    model, pulled = runner.tensors.model, runner.tensors.pulled()
    with calling("model.state_dict()", runner.contract.code_dir):
        differing = sorted(model.state_dict().keys() ^ pulled.keys())
    if not differing:
        return
    try:
        model.load_state_dict(pulled)
    except Exception:
        yield Omission(
            "extra_state",
            f"the pulled file would not load with load_state_dict: it holds tensors only, and {', '.join(differing)} "
            "(extra state, or a state_dict of the model's own) is not like that: keep it in a buffer or in the config, "
            "or load the file with strict=False",
            changes_training=True,
        )


def _never_called(module: ModuleType) -> Iterator[Omission]:
    """Yield the module's own functions that look as if the farm should call them, and that it does not know."""
    own = [n for n, f in vars(module).items() if isinstance(f, FunctionType) and f.__module__ == module.__name__]
    absent = [name for name in CONTRACT_FUNCTIONS if name not in own]
    for name in own:
        meant = difflib.get_close_matches(name, absent, 1, _CLOSE)
        if name in CONTRACT_FUNCTIONS or not (meant or name in _OF_OTHERS):
            continue
        hint = f"; did you mean {meant[0]}?" if meant else ""
        sentence = f"the farm never calls {name} of your module{hint}"
        yield Omission(name, sentence, changes_training=False)


def _lost_change(names: list[str]) -> Omission:
    return Omission(
        "parameter_changes",
        f"the code changes {names[0]} ({len(names)} tensors) itself, which is lost after each round: frozen parameters "
        "are never sent back (make it a buffer), and in gradients mode only gradients are (use --mode weights)",
        changes_training=True,
    )


def foreign_parameters(optimizer: torch.optim.Optimizer, tensors: ModelTensors) -> Iterator[Omission]:
    """Yield the parameters that it would train and that are not the model's: they are never sent back."""
    own = {id(parameter) for parameter in tensors.model.parameters()}
    foreign = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own and p.requires_grad]
    if foreign:
        shapes = ", ".join(str(list(p.shape)) for p in foreign[:3])
        yield Omission(
            "foreign_parameters",
            f"the optimizer trains {len(foreign)} parameters (of shapes {shapes}) that are not in the model, and what "
            "they learn would be lost: make them parameters of the model that build_model returns",
            changes_training=True,
        )


def resting_rate(optimizer: torch.optim.Optimizer) -> Iterator[Omission]:
    """Yield a note if no parameter will move: every group's learning rate is 0, by no schedule."""
    if all(float(group.get("lr", 1.0)) == 0 and "initial_lr" not in group for group in optimizer.param_groups):
        yield Omission("lr", "the learning rate is 0: training will change nothing", changes_training=False)
