"""One task in an executor: code, model and data in memory; runs its assignments one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from farm_client.data.seeds import derived_seed
from farm_client.executor import compiling
from farm_client.executor.contract import load_contract
from farm_client.executor.epoch_end import run_epoch_end
from farm_client.executor.failed_step import failed_step_file
from farm_client.executor.failures import CodeError, blaming, calling
from farm_client.executor.flops import FlopMeter
from farm_client.executor.gradient import BatchGradient
from farm_client.executor.guesses import Guesses
from farm_client.executor.held_weights import HeldWeights
from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.inner_state import StateFiles
from farm_client.executor.layout import as_stored
from farm_client.executor.lightning_loop import LightningLoop
from farm_client.executor.local_terms import term_of
from farm_client.executor.means import reportable
from farm_client.executor.messages import Done, LoadTask, Run
from farm_client.executor.omissions import SCHEDULE
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.outcome import StepsOutcome
from farm_client.executor.overlap import LaterSteps
from farm_client.executor.placing import Place, on_device
from farm_client.executor.precision import Autocast
from farm_client.executor.progress import ProgressReporter, StepsProgress
from farm_client.executor.randomness import seed_everything
from farm_client.executor.ranks import Ranks
from farm_client.executor.samples import Batches, SampleSource
from farm_client.executor.schedules import hold_initial_rate, refuse_beside
from farm_client.executor.snapshots import Snapshots, StepKeeping
from farm_client.executor.speculation import Speculation, allows_guesses
from farm_client.executor.step_rules import StepRules
from farm_client.executor.step_state import StateUnusable
from farm_client.executor.streaming import LocalModel
from farm_client.executor.timeline import Scheduled, TaskPace, Timeline, scheduled_by_name
from farm_client.executor.training import Advance, Trained, evaluate, sum_gradients, train_locally
from farm_client.executor.updates import UpdateWriter
from farm_client.stage_clock import StageClock
from protocol.assignments import Kind, WorkStage
from protocol.compression import CodecName
from protocol.recipe import InnerState, Mode
from protocol.task_length import TaskLength


class TaskRunner:
    """A loaded task. Holds the weights that it was last given, so that the next order need not repeat them."""

    def __init__(
        self,
        order: LoadTask,
        device: torch.device,
        imported: Callable[[], None] = lambda: None,
        loaded: TaskRunner | None = None,
        place: Place = on_device,
    ) -> None:
        """Import the code, build the model and ``place`` it; ``imported`` is called in between.

        ``loaded`` has done so under another order, and no assignment yet: its code and its model are taken over.
        Raises: CodeError; memory errors.
        """
        self._order = order
        self._device = device
        seed_everything(order.seed, device)
        if loaded is None:
            self.contract = load_contract(Path(order.code_dir), order.entry, order.settings)
            imported()
            self.tensors = place(self.contract, self.contract.build_model(), order, device)
        else:
            self.contract, self.tensors = loaded.contract, loaded.tensors
        self._autocast = Autocast.of(order.precision, device)
        self._source = SampleSource(self.contract, order, device)
        self._updates = UpdateWriter(order, self.tensors.layout())
        self._local = LocalModel.of(order, self.tensors)
        self._later = LaterSteps()
        self._weights = HeldWeights(self.tensors, order)
        self._states = StateFiles(self.tensors, self.contract.code_dir)
        self._gradient = BatchGradient(self.contract, self.tensors, self._autocast)
        self._flops = FlopMeter(is_compiled=order.compile)
        self._kept_loop: InnerLoop | None = None
        self.optimizers: Optimizers | None = None
        """Those that were built last."""
        self._whole_round: StepsOutcome | None = None
        self._guesses = Guesses(self.tensors, self._weights, self._may_guess)
        self._snapshots = Snapshots(None, 0.0)
        self._timeline: Timeline | None = None
        self._has_schedule = True
        self._schedule_steps = order.schedule_steps
        self.contract.tell(self.tensors.model, order.length, order.precision)

    def share_out(self, ranks: Ranks) -> None:
        """Share each batch out from now on, and begin without what rounds left: the other ranks have none of it."""
        self._gradient.ranks, self._kept_loop = ranks, None

    @property
    def has_run(self) -> bool:
        """Return whether it was given weights to work on."""
        return bool(self._weights.base)

    def run(self, order: Run, progress: ProgressReporter) -> Done:
        """Carry out one assignment and return its result.

        Raises: CodeError for the researcher's mistakes, FileNotFoundError for a missing shard or weights file,
            NotFound if neither weights came nor are those of ``weights_digest`` held, memory errors.
        """
        self._updates.begin()
        with blaming(self.contract.code_dir):
            outcome = self._compiled_or_not(order, progress)
            self._whole_round = outcome if outcome.samples == order.round_samples else None
            return self._done(outcome)

    def go_on(self) -> None:
        """Take the steps that the last update did not wait for, if there are any. Raises: as ``run``."""
        kept, self._kept_loop = self._kept_loop, None  # steps that fail half-way leave none
        with blaming(self.contract.code_dir):
            self._later.take()
        self._kept_loop = kept

    def foresee(self) -> str | None:
        """Return the digest of the version that it holds for the next round, if the last one was its own as a whole."""
        outcome, self._whole_round = self._whole_round, None
        if outcome is None or outcome.trained is None or self._order.mode is not Mode.WEIGHTS:
            return None
        if self._order.update_codec.name is not CodecName.NONE or self._order.fragments > 1:
            return None
        with suppress(RuntimeError, MemoryError, OSError):  # for want of memory: then the version is fetched
            return self._weights.foresee(outcome.trained.update, outcome.samples)
        return None

    @property
    def guess(self) -> Run | None:
        """Return what may be begun unasked, on the weights that it holds, after ``run_on`` or ``run_guess``."""
        return self._guesses.next

    def run_on(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``; where it goes on with a ``guess`` do as ``run_ahead``: the result says what it holds then."""
        self._updates.begin()
        with blaming(self.contract.code_dir):
            return self._gone_on(order, self._compiled_or_not(order, progress))

    def run_guess(self, speculation: Speculation) -> Done | Callable[[], Done]:
        """Carry out a guess, and then as ``run_on`` the order that adopted it.

        Raises: as ``run``, or Superseded: then ``undo``, and the order that came is to be carried out.
        """
        self._guesses.begin(speculation, self._kept_loop)
        speculation.on_adopted = lambda order: self._snapshots.keep_at(order.snapshot_path)
        with blaming(self.contract.code_dir):
            outcome = self._compiled_or_not(speculation.guess, speculation)
            done_at = time.perf_counter()
            order = speculation.adopted()
            self._guesses.hit()
            return self._gone_on(order, outcome.adopted(order.assignment_id, time.perf_counter() - done_at))

    def undo(self, *, is_wrong: bool) -> None:
        """Put back what a guess has changed beside the weights, which each order sets; one that is wrong counts."""
        self._kept_loop = self._guesses.undo(self._kept_loop, is_wrong=is_wrong)

    def _gone_on(self, order: Run, outcome: StepsOutcome) -> Done | Callable[[], Done]:
        """Report the outcome, and go on with a guess where one may follow it."""
        is_whole = outcome.trained is not None and outcome.samples == order.round_samples
        self._whole_round = outcome if is_whole else None
        if not is_whole or (held := self._guesses.follow(order, outcome)) is None:
            return self._done(outcome)
        self._whole_round = None
        written, digest = held
        return lambda: self._done(written).model_copy(update={"holds": digest()})

    def _may_guess(self) -> bool:
        return allows_guesses(self._order) and not self.contract.takes_lightnings_steps(self.tensors.model)

    def run_ahead(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``, but leave an update to be written by who calls what is returned, on any thread, one at a time.

        It is apart from the model by then, which may be trained on meanwhile. Raises: as ``run``; what is returned
        raises LossNotFinite, OSError, memory errors.
        """
        with blaming(self.contract.code_dir):
            outcome = self._compiled_or_not(order, progress)
            if outcome.trained is None:
                return self._done(outcome)
            outcome = outcome.apart()
        return lambda: self._done(outcome)

    def _compiled_or_not(self, order: Run, progress: StepsProgress) -> StepsOutcome:
        try:
            return self._resumed_or_anew(order, progress)
        except CodeError as error:
            if not (self._order.compile and compiling.has_failed(error)):
                raise
        compiling.forgo()
        return self._resumed_or_anew(order, progress)

    def _resumed_or_anew(self, order: Run, progress: StepsProgress) -> StepsOutcome:
        with suppress(StateUnusable):  # its file is gone, and the reason is in the log
            return self._carry_out(order, progress)
        return self._carry_out(order, progress)

    def _carry_out(self, order: Run, progress: StepsProgress) -> StepsOutcome:
        started, clock = time.perf_counter() - self._later.seconds(), StageClock()
        self._weights.take(order)
        clock.ended(WorkStage.LOAD)
        pace = self._pace(order)  # before the seed: it calls the task's code, and not in every round
        place = next(((piece.shard, piece.start) for piece in order.pieces), None)
        seed_everything(derived_seed(self._order.seed, order.round, order.epoch, place), self._device)
        self.contract.move(self.tensors.model, self._step(order, pace), order.epoch)
        if order.kind is Kind.EPOCH_END:
            with self._autocast():
                left = run_epoch_end(self.contract, self.tensors.model, order.epoch, Path(self._order.scratch_dir))
            return StepsOutcome(order.assignment_id, 1, {}, started, clock, left=left)
        data = self._source.batches(order.pieces, order.epoch)
        states = self._gradient.begin(order.pieces, order.epoch, self._order.batch_samples)
        if order.kind is Kind.EVALUATE:
            with self._autocast():
                metrics = evaluate(self.contract, self.tensors, data, progress.advance, states)
            return StepsOutcome(order.assignment_id, data.samples, reportable(metrics, "the metric"), started, clock)
        if (ranks := self._gradient.ranks) is not None:
            data = data.shared_out(ranks.share if self.tensors.shards is None else ranks.rows)
        snapshots = self._snapshots = Snapshots.of(
            order, 0.0 if self.tensors.shards else self._order.snapshot_seconds, progress
        )
        keeping = StepKeeping(snapshots, self._states, self._updates.residual)
        try:
            trained = self._train(order, data, progress.advance, pace, keeping)
        except CodeError as error:
            error.failed_step = failed_step_file(error, order, data, keeping.state, Path(self._order.scratch_dir))
            raise
        finally:
            snapshots.end()
        metrics = reportable(trained.metrics, "the metric")
        clock.ended(WorkStage.TRAIN)
        return StepsOutcome(order.assignment_id, data.samples, metrics, started, clock, trained)

    def take_frozen(self, path: Path) -> None:
        """Take the frozen tensors from a file: orders come without them then.

        Raises: CodeError if they are not this model's; FileNotFoundError.
        """
        self._weights.take_frozen(path)

    def confirm(self) -> None:
        """Note that the last result was reported: what its update lost now belongs to the next one."""
        self._updates.confirm()

    def weights_file(self) -> bytes:
        """Return what training may change of the model, as it is now: after loading, the task's initial weights."""
        return self.tensors.weights_file()

    def frozen_file(self) -> bytes | None:
        """Return what never changes of the model, or None if there is nothing."""
        return self.tensors.frozen_file()

    def build_optimizers(self) -> Optimizers:
        """Return new optimizers of the task's. Raises: CodeError."""
        self.optimizers = self.contract.build_optimizer(self.tensors.model)
        if SCHEDULE in self._order.ignore:
            for optimizer in self.optimizers:
                hold_initial_rate(optimizer)
        return self.optimizers

    def timeline(self) -> Timeline | None:
        """Return what the task's schedulers make of its optimizers' options; None without any that is to be followed.

        Raises: CodeError.
        """
        if self._order.schedule is not None:
            return Timeline(*self.build_scheduled(), self.build_scheduled)
        if SCHEDULE in self._order.ignore or not self.contract.has_schedulers(self.tensors.model):
            return None
        optimizers, schedulers = self.build_scheduled()
        if not schedulers or any(one.needs_metric for one in schedulers):
            return None
        return Timeline(optimizers, schedulers, self.build_scheduled)

    def take_length(self, length: TaskLength) -> None:
        """Take how long the task is, where its order came before that was known."""
        self._schedule_steps = length.steps
        self.contract.tell(self.tensors.model, length, self._order.precision)

    @property
    def inner_state(self) -> InnerState:
        """Return what a round's optimizer begins with."""
        return self._order.inner_state

    def build_scheduled(self) -> tuple[Optimizers, tuple[Scheduled, ...]]:
        """Return new optimizers with new schedulers, none where the task has none.

        Raises: CodeError, also where recipe and code both have one.
        """
        optimizers = self.contract.build_optimizer(self.tensors.model)
        named = self._order.schedule
        if named is None:
            return optimizers, self.contract.build_scheduler(optimizers, self.tensors.model)
        if SCHEDULE in self._order.ignore:
            for optimizer in optimizers:
                hold_initial_rate(optimizer)
        else:
            refuse_beside(named.name, self.contract.build_scheduler(optimizers, self.tensors.model), optimizers)
        return optimizers, scheduled_by_name(optimizers, named, self._schedule_steps)

    def _pace(self, order: Run) -> TaskPace | None:
        """Return where in the task, and in its schedule, the order's local steps are."""
        if order.kind is not Kind.TRAIN or self._order.mode is Mode.GRADIENTS:
            return None
        if self._has_schedule:
            self._timeline = self._timeline or self.timeline()
            self._has_schedule = self._timeline is not None
        own = sum(piece.stop - piece.start for piece in order.pieces)
        pace = TaskPace(
            self._timeline,
            self._order.batch_samples,
            order.samples_before,
            order.round_samples,
            own,
            order.epoch,
        )
        with calling("the scheduler's step()", self.contract.code_dir):
            pace.seek()
        return pace

    def _step(self, order: Run, pace: TaskPace | None) -> int | None:
        """Return the global step that the order begins with; None where it does not say."""
        if self._order.mode is Mode.GRADIENTS:
            return order.round
        return None if pace is None else pace.place.step

    def changed_by_code(self) -> list[str]:
        """Name the tensors that the last assignment changed and that are not sent back."""
        return self._weights.changed(self.tensors.parameters if self._order.mode is Mode.GRADIENTS else {})

    def count_rows(self) -> int:
        """Return the length of the data set that ``make_dataset`` builds. Raises: CodeError."""
        return self._source.count_rows()

    def known_rows(self) -> int | None:
        """Return the same; None of a stream, and where the data are no ``make_dataset``'s."""
        return self._source.known_rows() if self.contract.has("make_dataset") else None

    def _train(
        self, order: Run, data: Batches, advance: Advance, pace: TaskPace | None, keeping: StepKeeping
    ) -> Trained:
        if self._order.mode is Mode.GRADIENTS:
            gradient, tensors, flops = self._gradient, self.tensors, self._flops
            return sum_gradients(self.contract, data, advance, keeping, gradient=gradient, tensors=tensors, flops=flops)
        rules = StepRules.of(self._order, pace)
        loop = self._kept_loop or self._new_loop(rules)
        self._kept_loop = None  # a round that fails half-way leaves none
        loop.rules = rules
        loop.term = term_of(self._order, order, self.tensors, self._weights.base)
        self._begin_with_state(loop, order)
        self._local.begin(order.round)
        ended = partial(self._local.end, order.round)
        base, flops = self._weights.base, self._flops
        overlap = self._local.overlap(order.round)
        trained = train_locally(loop, data, advance, keeping, base=base, flops=flops, ended=ended, overlap=overlap)
        trained = self._local.told(order.round, trained)
        self._later.leave(trained.rest)
        match self._order.inner_state:
            case InnerState.KEPT:
                self._kept_loop = loop
            case InnerState.CARRIED:
                trained = replace(trained, state=self._states.save(loop.stateful()))
        return trained

    def _new_loop(self, rules: StepRules) -> InnerLoop:
        optimizers, scaler = self.build_optimizers(), self._gradient.new_scaler()
        kind = LightningLoop if self.contract.takes_lightnings_steps(self.tensors.model) else InnerLoop
        return kind(self.contract, self.tensors, optimizers, rules, self._gradient, scaler)

    def _begin_with_state(self, loop: InnerLoop, order: Run) -> None:
        """Give the inner loop the state that the version carries, if it carries one."""
        state = order.inner_state if order.inner_state_path is None else Path(order.inner_state_path)
        if state is not None:
            self._states.load(loop.stateful(), state)

    def _done(self, outcome: StepsOutcome) -> Done:
        done = Done(
            assignment_id=outcome.assignment_id, samples=outcome.samples, metrics=outcome.metrics, left=outcome.left
        )
        if (trained := outcome.trained) is not None:
            update = as_stored(trained.update)
            outcome.clock.ended(WorkStage.COPY)
            fields = self._updates.write(done.assignment_id, update, trained.untouched, trained.state)
            fields |= self._updates.write_kept(done.assignment_id, trained.kept)
            outcome.clock.ended(WorkStage.WRITE)
            done = done.model_copy(update={**fields, "flops_per_sample": self._flops.per_sample})
        stages = outcome.clock.seconds
        return done.model_copy(update={"compute_seconds": outcome.compute_seconds(), "stage_seconds": stages})
