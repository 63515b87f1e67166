"""The executor process: warms up, then carries out its agent's orders until the stop.

    Warm -> LoadTask -> Loaded -> (Run -> Advance ... -> Done | Failed) ...    at any time: Rebase -> Rebased | Failed
    where the next Run is guessed: Run -> Advance ... -> Done while the guess is carried out, then the next Run
    of a pipelined task:           Run -> Advance ... -> StepsDone, then the next Run; its Done | Failed comes meanwhile
    with steps beside the update:  Run -> Advance ... -> Done before the last steps; what fails there fails the next Run

One process serves one task. Its stdout and stderr are the researcher's and are read by the agent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from farm_client import task
from farm_client.executor.channel import Channel
from farm_client.executor.data_loaders import has_semaphores, load_without_workers
from farm_client.executor.devices import choose_device
from farm_client.executor.environment import work_beside
from farm_client.executor.failures import as_failed
from farm_client.executor.followers import Followers
from farm_client.executor.map_runner import MapRunner
from farm_client.executor.means import remark
from farm_client.executor.messages import (
    Abandon,
    Building,
    Done,
    Holds,
    Loaded,
    LoadTask,
    Order,
    Rebase,
    Rebased,
    Run,
    StepsDone,
    Stop,
    Suspend,
    Suspended,
    Warm,
)
from farm_client.executor.output import flush_streams, print_anything
from farm_client.executor.placing import Place, Placing, on_device
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.ranks import may_share_out
from farm_client.executor.rebase import rebase
from farm_client.executor.runner import TaskRunner
from farm_client.executor.script import is_script
from farm_client.executor.script_runner import ScriptRunner
from farm_client.executor.speculation import Speculation, Superseded
from farm_client.executor.suspension import Suspension
from farm_client.executor.task_packages import use_packages
from farm_client.executor.update_thread import UpdateThread
from farm_client.executor.vram import bound_vram
from farm_client.heap import give_back
from protocol.errors import FarmError, OutOfOrder


def warm_up(*, lends_accelerator: bool) -> None:
    """Build an optimizer once: the first construction imports torch._dynamo, which takes over a second.

    Where an accelerator is lent that is all. The first backward pass and the first step ask CUDA for its devices, on
    whichever device they run, and so open a context on the card: hundreds of megabytes, and a clock that does not
    rest, for an executor that only waits.
    """
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter])
    if not lends_accelerator:
        torch.autograd.backward(parameter.sum())
        optimizer.step()


class Runner(Protocol):
    """A loaded task."""

    def run(self, order: Run, progress: ProgressReporter) -> Done:
        """Carry out one assignment and return its result."""

    def run_ahead(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``, or return what writes the update while the next assignment is carried out."""

    @property
    def guess(self) -> Run | None:
        """Return what it may begin unasked."""

    def run_on(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``, or return what writes the update while the guess is carried out."""

    def run_guess(self, speculation: Speculation) -> Done | Callable[[], Done]:
        """Carry out the guess, and do as ``run_on`` for the order that came."""

    def undo(self, *, is_wrong: bool) -> None:
        """Put back what a guess has changed, because it was wrong or because of an error."""

    def confirm(self) -> None:
        """Note that the last result was reported."""

    def foresee(self) -> str | None:
        """Return the digest of the version that it holds already for the next round; None if it knows none."""


LoadRunner = Callable[[LoadTask, torch.device, Callable[[], None]], Runner]


def load_runner(
    order: LoadTask, device: torch.device, imported: Callable[[], None], place: Place = on_device
) -> Runner:
    """Load a task: a script with a loop of its own is run, another file is imported, for its model or its function.

    Raises: CodeError; ShadowsOwn of packages that are the farm's own.
    """
    if order.packages_dir is not None:
        use_packages(Path(order.packages_dir))
    work_beside(order.code_dir, order.entry)
    if not has_semaphores():
        load_without_workers(lambda line: print(line, flush=True))  # noqa: T201 - a line of the task's log
    if order.map is not None:
        return MapRunner(order, device, imported)
    if is_script(Path(order.code_dir) / order.entry):
        return ScriptRunner(order, device, imported)
    return TaskRunner(order, device, imported, place=place)


class _Executor:
    """Answers each order with its reports."""

    def __init__(self, channel: Channel, load: LoadRunner, followers: Followers | None = None) -> None:
        self._channel = channel
        self._load_runner = load
        self._progress = ProgressReporter(channel.send, suspension=Suspension(channel))
        self._runner: Runner | None = None
        self._runs_ahead = False
        self._behind = UpdateThread()
        self._late_error: BaseException | None = None
        """What went wrong in steps whose assignment was done already; the next order is told."""
        self._followers = followers
        """The other ranks, while they follow."""
        self._is_over = False

    def serve(self) -> None:
        """Carry out orders until a stop or the agent's end of the socket."""
        task.send_metrics_to(self._progress.log)
        while not self._is_over and (order := self._next_order()) is not None:
            match order:
                case LoadTask():
                    self._load(order)
                case Run():
                    self._run(order)
                case Rebase():
                    self._rebase(order)
                case Abandon():
                    """Nothing was begun, or it is given up already."""
                case Suspend():
                    self._channel.send(Suspended())  # nothing was begun
                case Stop():
                    return

    def _next_order(self) -> Order | None:
        """Wait for an order; meanwhile begin with what it is likely to be."""
        while self._runner is not None and (guess := self._runner.guess) is not None:
            if (failed := self._speculate(self._runner, guess)) is not None:
                return failed
        give_back()
        return self._channel.receive()

    def _speculate(self, runner: Runner, guess: Run) -> Run | None:
        """Carry out a guess up to its result; return the order that adopted it, if it is to be carried out anew."""
        speculation = Speculation(guess, self._channel, self._progress, self._behind.wait)
        try:
            outcome = runner.run_guess(speculation)
        except ConnectionError:
            raise
        except BaseException as error:  # a mistake is reported when the order for it meets it, too
            runner.undo(is_wrong=isinstance(error, Superseded))
            self._progress.drop()
            return speculation.order
        if speculation.order is not None:
            self._settle(speculation.order, outcome)
        return None

    def _load(self, order: LoadTask) -> None:
        try:
            # not before: to choose a device is to open it
            device = choose_device()
            bound_vram(device)
            is_trained_by_steps = order.map is None and not is_script(Path(order.code_dir) / order.entry)
            if self._followers is not None and is_trained_by_steps:
                self._followers.load(order)
            self._runner = self._load_runner(order, device, lambda: self._channel.send(Building()))
            self._share_out()
        except BaseException as error:
            self._fail(error, None)
        else:
            self._runs_ahead = order.pipeline
            flush_streams()
            self._channel.send(Loaded())

    def _share_out(self) -> None:
        """Have the other ranks follow if the task can be shared out; else end them."""
        if self._followers is None:
            return
        runner = self._runner
        if isinstance(runner, TaskRunner) and may_share_out(runner.contract, runner.tensors.model):
            runner.share_out(self._followers.meet())
            return
        remark(f"this task's steps can't be shared out: one of this machine's {self._followers.size} processes works")
        self._followers.end()
        self._followers = None

    def _run(self, order: Run) -> None:
        if self._runner is None:
            self._fail(OutOfOrder("the executor got a run before its load"), order.assignment_id)
            return
        self._progress.start(order.assignment_id)
        late_error, self._late_error = self._late_error, None
        try:
            _raise_late(late_error)
            if self._followers is not None:
                self._followers.run(order)
            outcome = self._outcome_of(self._runner, order)
        except BaseException as error:
            self._fail(error, order.assignment_id)
            self._begin_anew()
        else:
            self._settle(order, outcome)

    def _outcome_of(self, runner: Runner, order: Run) -> Done | Callable[[], Done]:
        if self._runs_ahead:
            return runner.run_ahead(order, self._progress)
        if self._followers is not None:  # who hold the versions that orders bring, and no others
            return runner.run(order, self._progress)
        return runner.run_on(order, self._progress) if order.upcoming else runner.run(order, self._progress)

    def _begin_anew(self) -> None:
        """Put other ranks in the place of those that wait for what this one failed to do.

        Who holds a model together with them can't go on without: then this executor ends, and the agent starts another.
        """
        if self._followers is not None and isinstance(self._runner, TaskRunner):
            if self._runner.tensors.shards is not None:
                self._followers.end()
                self._is_over = True
                return
            self._followers.restart()
            self._runner.share_out(self._followers.meet())

    def _settle(self, order: Run, outcome: Done | Callable[[], Done]) -> None:
        """Report an outcome, or have it written and reported beside what comes next."""
        self._progress.finish()
        flush_streams()
        if isinstance(outcome, Done):
            self._report(outcome)
            self._go_on()
            self._foresee()
            return
        self._behind.wait()
        if self._runs_ahead:
            self._channel.send(StepsDone(assignment_id=order.assignment_id))
        self._behind.start(partial(self._write, outcome, order.assignment_id))

    def _report(self, done: Done) -> None:
        self._channel.send(done)
        if self._runner is not None and done.update_digest is not None:
            self._runner.confirm()

    def _go_on(self) -> None:
        """While the update travels, take the steps that it did not wait for."""
        if not isinstance(self._runner, TaskRunner):
            return
        try:
            self._runner.go_on()
        except ConnectionError:
            raise
        except BaseException as error:
            self._late_error = error

    def _foresee(self) -> None:
        """While the update travels, and nothing else is to be done."""
        if self._followers is None and self._runner is not None and (digest := self._runner.foresee()) is not None:
            self._channel.send(Holds(weights_digest=digest))

    def _write(self, write: Callable[[], Done], assignment_id: str) -> None:
        """Write an update while the next assignment runs, whose progress this is not to end."""
        with suppress(ConnectionError):  # the agent is gone: nobody to tell
            try:
                self._report(write())
            except BaseException as error:
                if isinstance(error, ConnectionError):
                    raise
                self._channel.send(as_failed(error, assignment_id))

    def _rebase(self, order: Rebase) -> None:
        try:
            rebase(Path(order.base_path), order.differences, Path(order.made_path))
        except Exception as error:
            self._fail(error, order.assignment_id)
        else:
            self._channel.send(Rebased(assignment_id=order.assignment_id))

    def _fail(self, error: BaseException, assignment_id: str | None) -> None:
        if isinstance(error, ConnectionError):  # the agent is gone: nobody to tell
            raise error
        self._progress.finish()
        flush_streams()
        self._channel.send(as_failed(error, assignment_id))


def _raise_late(error: BaseException | None) -> None:
    if error is not None:
        raise error


def main(load: LoadRunner | None = None) -> int:
    """Run the executor; 0 at a stop or when the agent is gone, 2 if started by hand.

    ``load`` makes what does its task's assignments: a test may give one of its own.
    """
    try:
        channel = Channel.from_environment()
    except FarmError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    followers = Followers.from_environment(channel.send)
    if load is None:
        load = load_runner if followers is None else partial(load_runner, place=Placing(followers.ranks()))
    print_anything()
    warm_up(lends_accelerator=bool(os.environ.get("CUDA_VISIBLE_DEVICES")))
    try:
        channel.send(Warm(torch_version=torch.__version__))
        _Executor(channel, load, followers).serve()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
