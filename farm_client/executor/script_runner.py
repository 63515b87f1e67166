"""One script with a loop of its own in an executor; runs assignments one after the other, as ``TaskRunner`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from farm_client.data.order import StrideOrder, mixed, shard_order
from farm_client.data.seeds import derived_seed
from farm_client.executor.failures import CodeError, blaming, calling
from farm_client.executor.held_weights import HeldWeights
from farm_client.executor.inner_state import StateFiles
from farm_client.executor.layout import ModelTensors
from farm_client.executor.local_terms import asked_for
from farm_client.executor.means import as_number, reportable
from farm_client.executor.messages import Done, LoadTask, Piece, Run
from farm_client.executor.modes import set_mode
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.randomness import seed_everything
from farm_client.executor.script import Script
from farm_client.executor.speculation import Speculation
from farm_client.executor.training import Trained, difference
from farm_client.executor.updates import UpdateWriter
from farm_client.own_loop import LoopPart
from farm_client.stage_clock import StageClock
from protocol.assignments import Kind, WorkStage
from protocol.codecs import tensor_file
from protocol.errors import OutOfOrder
from protocol.recipe import InnerState


class ScriptRunner:
    """A loaded script. It begins anew after a failure; the weights that it was last given stay."""

    def __init__(self, order: LoadTask, device: torch.device, imported: Callable[[], None] = lambda: None) -> None:
        """Run the script up to its first part. Raises: CodeError; memory errors."""
        self._order = order
        self._device = device
        self._code_dir = Path(order.code_dir).resolve()
        if order.dataset_kind == "files":
            raise CodeError("a script with farm.parts reads its own data: put it beside the script, not into --data")
        if order.schedule is not None:
            raise CodeError(
                "a script with farm.parts steps its optimizer itself, and the recipe's schedule would be left out: "
                "have the script follow one"
            )
        if order.fragments > 1:
            raise CodeError("a script with farm.parts sends its whole model: leave fragments out of the recipe")
        if field := asked_for(order):
            raise CodeError(
                f"a script with farm.parts computes its gradients itself, and the recipe's {field} would be left out: "
                "have the script add the term, and leave it out of the recipe"
            )
        self.items: int | None = None
        """The length of the script's data set, once a part was trained."""
        imported()
        self._begin()
        self._weights = HeldWeights(self.tensors, order)
        self._updates = UpdateWriter(order, self.tensors.layout())

    @property
    def carries(self) -> bool:
        """Whether the script gave what hands its state on."""
        return bool(self._script.carries)

    @property
    def evaluates(self) -> bool:
        """Whether the script gave a function that evaluates."""
        return self._script.evaluate is not None

    def run(self, order: Run, progress: ProgressReporter) -> Done:
        """Carry out one assignment and return its result. Raises: as ``TaskRunner.run`` does."""
        with blaming(self._code_dir):
            started, clock = time.perf_counter(), StageClock()
            self._updates.begin()
            self._weights.take(order)
            clock.ended(WorkStage.LOAD)
            first = order.pieces[0] if order.pieces else None
            place = first and (first.shard, first.start)
            seed_everything(derived_seed(self._order.seed, order.round, order.epoch, place), self._device)
            part = self._part(order, progress)
            if order.kind is Kind.EVALUATE:
                metrics = self._evaluate(part)
                trained = None
            else:
                trained = self._train(part, order)
                metrics = trained.metrics
                clock.ended(WorkStage.TRAIN)
            known = reportable(metrics, "the metric")
            samples = sum(piece.stop - piece.start for piece in order.pieces)
            done = Done(assignment_id=order.assignment_id, samples=samples, metrics=known)
            if trained is not None:
                fields = self._updates.write(order.assignment_id, trained.update, trained.untouched, trained.state)
                clock.ended(WorkStage.WRITE)
                done = done.model_copy(update=fields)
            seconds = time.perf_counter() - started
            return done.model_copy(update={"compute_seconds": seconds, "stage_seconds": clock.seconds})

    def run_ahead(self, order: Run, progress: ProgressReporter) -> Done:
        """Do as ``run``: the loop is the script's, which may change what it has given back."""
        return self.run(order, progress)

    guess: Run | None = None
    """Nothing is begun unasked."""

    def run_on(self, order: Run, progress: ProgressReporter) -> Done:
        """Do as ``run``: nothing is begun unasked."""
        return self.run(order, progress)

    def foresee(self) -> None:
        """Hold no version for the next round: the loop is the script's."""

    def run_guess(self, speculation: Speculation) -> Done:
        """Raises: OutOfOrder, because nothing was begun."""
        raise OutOfOrder("a script begins nothing unasked")

    def undo(self, *, is_wrong: bool) -> None:
        """Leave all as it is: nothing was begun."""

    def try_out(self, samples: int) -> tuple[dict[str, float], dict[str, float]]:
        """Train on the first rows, and evaluate with them if the script does; return both metrics. Raises: CodeError.

        How long the data set is, is known afterwards.
        """
        self._weights.base = {name: tensor.detach().clone() for name, tensor in self.tensors.changing().items()}

        def first_rows() -> LoopPart:
            return LoopPart(lambda items: range(min(samples, items)))

        with blaming(self._code_dir):
            trained = self._train(first_rows())
            self._states.save(self._script.carries)  # whether it can be carried
            self.tensors.load(self._weights.base, self.tensors.changing())
            return trained.metrics, self._evaluate(first_rows()) if self.evaluates else {}

    def take_frozen(self, path: Path) -> None:
        """Take the frozen tensors from a file. Raises: CodeError if they are not this model's; FileNotFoundError."""
        self._weights.take_frozen(path)

    def close(self) -> None:
        """End the script."""
        self._script.end()

    def confirm(self) -> None:
        """Note that the last result was reported."""
        self._updates.confirm()

    def weights_file(self) -> bytes:
        """Return what training may change of the model, as it is now."""
        return self.tensors.weights_file()

    def frozen_file(self) -> bytes | None:
        """Return what never changes of the model, or None if there is nothing."""
        return self.tensors.frozen_file()

    def _begin(self) -> None:
        seed_everything(self._order.seed, self._device)
        self._script = Script(self._code_dir, self._order.entry, self._order.settings)
        assert self._script.model is not None  # noqa: S101 - a script without a model has raised
        with calling("reading the model's tensors", self._code_dir):
            self.tensors = ModelTensors.of(self._script.model)
        self._states = StateFiles(self.tensors, self._code_dir)
        self._fresh = self._state_file() if self._is_carried else None

    @property
    def _is_carried(self) -> bool:
        return self._order.inner_state is InnerState.CARRIED and self.carries

    def _train(self, part: LoopPart, order: Run | None = None) -> Trained:
        try:
            if self._is_carried:
                self._load_state(order)
            self._script.train(part)
            self.items = part.items
            self.tensors.clear_gradients()
            self.tensors.check_structure()
            trained = difference(self._weights.base, self.tensors, part.metrics)
            return replace(trained, state=self._states.save(self._script.carries)) if self._is_carried else trained
        except BaseException:
            self._script.end()
            self._begin()  # the next assignment finds a script that waits for it, whatever became of this one
            self._weights.give_to(self.tensors)
            raise

    def _state_file(self) -> bytes:
        saved = self._states.save(self._script.carries)
        return b"".join(tensor_file(saved.tensors, saved.metadata))

    def _load_state(self, order: Run | None) -> None:
        """Give the script the state that the version carries; that of the beginning if it carries none."""
        if order is not None and order.inner_state_path is not None:
            self._states.load(self._script.carries, Path(order.inner_state_path))
        elif order is not None and order.inner_state is not None:
            self._states.load(self._script.carries, order.inner_state)
        elif self._fresh is not None:
            self._states.load(self._script.carries, self._fresh)

    def _evaluate(self, part: LoopPart) -> dict[str, float]:
        model = self.tensors.model
        set_mode(model, self._code_dir, training=False)
        with torch.no_grad(), calling("evaluate(model, part)", self._code_dir, function=self._script.evaluate):
            found = self._script.evaluation(part)
            metrics = {str(name): as_number(value) for name, value in found.items()}
        set_mode(model, self._code_dir, training=True)
        return metrics

    def _part(self, order: Run, progress: ProgressReporter) -> LoopPart:
        def rows(items: int) -> Sequence[int]:
            found = [row for piece in order.pieces for row in self._rows(piece, order.epoch, items)]
            if order.kind is Kind.EVALUATE or len(order.pieces) == 1:  # as stored, or shuffled already
                return found
            return mixed(found, derived_seed(self._order.seed, "part", order.round, order.epoch))

        return LoopPart(rows, round_number=order.round, epoch=order.epoch, advance=progress.advance)

    def _rows(self, piece: Piece, epoch: int, items: int) -> list[int]:
        if piece.first_row + piece.shard_samples > items:
            raise CodeError(
                f"the data set has {items} items here, and had more where the task was submitted: every client must "
                "have the same data"
            )
        order = shard_order(self._order.seed, epoch, piece.shard, piece.shard_samples, piece.split)
        stride = StrideOrder(items, self._order.seed)
        return [stride.item(piece.first_row + row) for row in order[piece.start : piece.stop].tolist()]
