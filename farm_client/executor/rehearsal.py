"""A task's first steps on the researcher's machine, through the code that volunteers run.

    python -m farm_client.executor.rehearsal REQUEST.json REPORT.json

Builds the model and its initial weights, and tries one batch: a training assignment, an evaluation, an epoch's end.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from farm_client.executor.batch_states import refuse_without_order
from farm_client.executor.devices import choose_device
from farm_client.executor.environment import work_beside
from farm_client.executor.failures import CodeError, EmptyData, as_failed, blaming, calling
from farm_client.executor.messages import Advance, Done, LoadTask, Piece, Run, Saved
from farm_client.executor.model_files import model_files
from farm_client.executor.omissions import SCHEDULE, Omission, TrainsOtherwise, refuse_unless_ignored
from farm_client.executor.on_server import obstacles, own_steps
from farm_client.executor.optimizer_spec import outer_optimizer_of
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.output import print_anything
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.rehearsal_records import RehearsalReport, RehearsalRequest
from farm_client.executor.runner import TaskRunner
from farm_client.executor.schedule_fit import TooLong, schedules_of
from farm_client.executor.script import is_script
from farm_client.executor.script_runner import ScriptRunner
from farm_client.executor.survey import Survey
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.recipe import DataOrder, InnerState, Mode, OuterOptimizer
from protocol.task_length import TaskLength
from protocol.tasks import Split
from protocol.wording import counted

_RSS_UNIT_BYTES: Final = 1 if sys.platform == "darwin" else 1024


def rehearse(request: RehearsalRequest) -> RehearsalReport:
    """Try a task and say what happened; a mistake in its code is reported, not raised."""
    try:
        return _in_either_mode(request) if request.mode is None else _rehearsed(request, request.mode)
    except BaseException as error:
        return RehearsalReport(failed=as_failed(error, None))


def _in_either_mode(request: RehearsalRequest) -> RehearsalReport:
    """Try gradients mode, and weights mode where that would train otherwise than the task's own loop.

    Both with one model, unless the first has changed it.
    """
    obstacle = "the rows are read in order, one batch after the other"
    loaded: TaskRunner | None = None
    if request.order is not DataOrder.SEQUENTIAL:
        if _is_script(request):
            return _rehearsed(request, Mode.GRADIENTS)
        loaded = TaskRunner(_load_order(request, Mode.GRADIENTS), choose_device())
        try:
            return _judged(loaded, request, Mode.GRADIENTS)
        except TrainsOtherwise as refusal:
            obstacle = refusal.message
    carried = request.model_copy(update={"inner_state": InnerState.CARRIED})  # as it will be where that mode is chosen
    if loaded is None or loaded.has_run:
        report = _rehearsed(carried, Mode.WEIGHTS)
    else:
        runner = TaskRunner(_load_order(carried, Mode.WEIGHTS), choose_device(), loaded=loaded)
        report = _judged(runner, carried, Mode.WEIGHTS)
    return report.model_copy(update={"obstacle": obstacle})


def _rehearsed(request: RehearsalRequest, mode: Mode) -> RehearsalReport:
    device = choose_device()
    if _is_script(request):
        return _script_tried_out(request, device)
    return _judged(TaskRunner(_load_order(request, mode), device), request, mode)


def _is_script(request: RehearsalRequest) -> bool:
    return is_script(Path(request.code_dir) / request.entry)


def _judged(runner: TaskRunner, request: RehearsalRequest, mode: Mode) -> RehearsalReport:
    with blaming(runner.contract.code_dir):
        refuse_without_order(runner.contract, mode, request.order is DataOrder.SEQUENTIAL)
        return _tried_out(runner, request, mode, str(choose_device()))


def _tried_out(runner: TaskRunner, request: RehearsalRequest, mode: Mode, device: str) -> RehearsalReport:
    weights = runner.weights_file()
    digest = digest_bytes(weights)
    path = Path(request.folder) / "initial.weights"
    path.write_bytes(weights)
    frozen = runner.frozen_file()
    frozen_path = Path(request.folder) / "frozen.weights"
    if frozen is not None:
        frozen_path.write_bytes(frozen)
        runner.take_frozen(frozen_path)
    rows = request.rows if request.sample_path or request.rows else runner.count_rows()
    if request.rows_before is not None:
        _refuse_other_rows(runner, request.rows_before)
    if rows == 0:
        raise EmptyData("the data set is empty: make_dataset(config) returned one of length 0")
    length = request.length(mode, rows or request.file_rows)
    runner.take_length(length)
    optimizers = runner.build_optimizers()
    if request.mode is None and mode is Mode.GRADIENTS:
        _refuse_obstacles(runner, optimizers)
    survey = Survey(runner, optimizers, mode)
    refuse_unless_ignored(survey.before() if request.tries_batch else survey.all(), request.ignore)
    report = RehearsalReport(
        weights_path=str(path),
        weights_bytes=len(weights),
        frozen_path="" if frozen is None else str(frozen_path),
        frozen_bytes=0 if frozen is None else len(frozen),
        is_quantized=bool(runner.tensors.beside),
        model_files=model_files(runner.tensors.model),
        rows=rows,
        outer=_outer(runner, optimizers, request, length) if mode is Mode.GRADIENTS else None,
        mode=mode,
        evaluates=runner.contract.evaluates(runner.tensors.model),
        has_state=runner.contract.has("initial_state"),
        has_scheduler=mode is Mode.WEIGHTS and runner.timeline() is not None,
        epoch_end=runner.contract.has("on_epoch_end"),
        device=device,
    )
    if request.tries_batch:
        report = report.model_copy(update=_tried(runner, survey, _orders(request, digest, path, rows)))
    notes = refuse_unless_ignored(survey.all(), request.ignore)
    seen = {"reads_length": runner.contract.reads_length(runner.tensors.model), "peak_rss_bytes": _peak_rss_bytes()}
    return report.model_copy(update={"notes": notes, **seen})


def _refuse_other_rows(runner: TaskRunner, before: int) -> None:
    rows = runner.known_rows()
    if rows is not None and rows != before:
        raise CodeError(
            f"with this config make_dataset gives {counted(rows, 'row')} instead of {before}: a task goes on with the "
            "data that it had"
        )


def _script_tried_out(request: RehearsalRequest, device: torch.device) -> RehearsalReport:
    """Run a script with a loop of its own up to its first part, and have it train on the first rows."""
    if request.mode is Mode.GRADIENTS:
        raise CodeError("a script with farm.parts hands in what its own steps changed: use --mode weights")
    if request.order is DataOrder.SEQUENTIAL:
        raise CodeError("a script with farm.parts is given shuffled rows: leave out --order sequential")
    runner = ScriptRunner(_load_order(request, Mode.WEIGHTS), device)
    try:
        return _script_judged(runner, request, device)
    finally:
        runner.close()


def _script_judged(runner: ScriptRunner, request: RehearsalRequest, device: torch.device) -> RehearsalReport:
    if request.inner_state is InnerState.CARRIED and not runner.carries:
        raise CodeError(
            "the script keeps its optimizer to itself: write farm.parts(model, optimizer), or leave out "
            'inner_state = "carried"'
        )
    weights = runner.weights_file()
    path, frozen_path = Path(request.folder) / "initial.weights", Path(request.folder) / "frozen.weights"
    path.write_bytes(weights)
    frozen = runner.frozen_file()
    if frozen is not None:
        frozen_path.write_bytes(frozen)
    report = RehearsalReport(
        is_script=True,
        mode=Mode.WEIGHTS,
        carries=runner.carries,
        evaluates=runner.evaluates,
        weights_path=str(path),
        weights_bytes=len(weights),
        frozen_path="" if frozen is None else str(frozen_path),
        frozen_bytes=0 if frozen is None else len(frozen),
        is_quantized=bool(runner.tensors.beside),
        model_files=model_files(runner.tensors.model),
        rows=request.rows,
        device=str(device),
    )
    if request.tries_batch:
        metrics, evaluation = runner.try_out(request.batch_samples)
        tried = {
            "tried": True,
            "loss": metrics.get("loss"),
            "metrics": metrics,
            "evaluation": evaluation,
            "rows": runner.items,
        }
        report = report.model_copy(update=tried)
    if report.rows is None:
        raise CodeError(
            "how many rows the script has is known once it was tried: leave out --no-check, or write samples = N into "
            "[task] of --config"
        )
    return report.model_copy(update={"peak_rss_bytes": _peak_rss_bytes()})


def _refuse_obstacles(runner: TaskRunner, optimizers: Optimizers) -> None:
    """Raises: TrainsOtherwise, saying what of the task's steps the server can't take, without what to do about it."""
    found = [*own_steps(runner.contract, runner.tensors.model)]
    if not found and len(optimizers.by_name) > 1:
        raise TrainsOtherwise("the server steps one optimizer, and build_optimizer returned several")
    if found or (found := obstacles(optimizers.only, runner.tensors)):
        raise TrainsOtherwise(found[0].sentence.partition(": ")[0])


def _outer(runner: TaskRunner, optimizers: Optimizers, request: RehearsalRequest, length: TaskLength) -> OuterOptimizer:
    """Return the task's optimizer for the server, with what its schedulers make of it at each version."""
    timeline = runner.timeline()
    if timeline is None:
        return outer_optimizer_of(optimizers.only, runner.tensors)
    try:
        with calling("the scheduler's step()", runner.contract.code_dir):
            schedules = schedules_of(timeline, length)
    except TooLong as error:
        sentence = f"in gradients mode the server follows the schedule, and {error}: use --mode weights"
        refuse_unless_ignored([Omission(SCHEDULE, sentence, changes_training=True)], request.ignore)
        schedules = []
    return outer_optimizer_of(optimizers.only, runner.tensors, schedules)


def _load_order(request: RehearsalRequest, mode: Mode) -> LoadTask:
    return LoadTask(
        task_id="rehearsal",
        code_dir=request.code_dir,
        entry=request.entry,
        config=request.config,
        base_dir=request.base_dir,
        mode=mode,
        seed=request.seed,
        batch_samples=request.batch_samples,
        dataset_kind="files" if request.sample_path else "code",
        scratch_dir=request.folder,
        inner_state=request.inner_state,
        update_codec=request.update_codec,
        ignore=request.ignore,
        tuple_columns=request.tuple_columns,
        clip_norm=request.clip_norm,
        clip_value=request.clip_value,
        proximal_mu=request.proximal_mu,
        fragments=request.fragments,
        fragment_pattern=request.fragment_pattern,
        fragment_mix=request.fragment_mix,
        scaffold_clients=request.scaffold_clients,
        schedule=request.schedule,
        precision=request.precision,
        compile=request.compile,
    )


def _orders(request: RehearsalRequest, digest: str, weights: Path, rows: int | None) -> list[Run]:
    """Return a training order and an evaluation order over the sample's rows."""
    samples = request.sample_rows if request.sample_path else min(request.tried_samples, rows or 0)
    stride = 0
    if request.order is DataOrder.SEQUENTIAL:
        stride = samples // request.batch_samples
        if not stride:
            raise CodeError(
                f'order = "sequential" reads {request.batch_samples} streams side by side, and the data has {samples} '
                "rows: lower batch_samples"
            )
        samples = stride * request.batch_samples
    return [
        Run(
            assignment_id=f"rehearsal-{kind}",
            kind=kind,
            round=0,
            epoch=0,
            weights_digest=digest,
            weights_path=str(weights),
            pieces=(
                Piece(
                    shard=index,
                    split=split,
                    shard_samples=samples,
                    first_row=0,
                    stride=stride,
                    path=request.sample_path,
                    start=0,
                    stop=samples,
                ),
            ),
        )
        for index, (kind, split) in enumerate(((Kind.TRAIN, Split.TRAIN), (Kind.EVALUATE, Split.HOLDOUT)))
    ]


def _tried(runner: TaskRunner, survey: Survey, orders: Sequence[Run]) -> dict[str, object]:
    progress = ProgressReporter(_ignore)
    done: list[Done] = []
    train, evaluate = orders
    survey.watch_training(lambda: done.append(runner.run(train, progress)))
    if evaluates := runner.contract.evaluates(runner.tensors.model):
        done.append(runner.run(evaluate, progress))
    if runner.contract.has("on_epoch_end"):
        runner.run(train.model_copy(update={"kind": Kind.EPOCH_END, "pieces": ()}), progress)
    trained = done[0]
    return {
        "tried": True,
        "loss": trained.metrics.get("loss"),
        "metrics": trained.metrics,
        "evaluation": done[-1].metrics if evaluates else {},
        "batch_seconds": trained.compute_seconds,
    }


def _peak_rss_bytes() -> int:
    """Return the most memory that this process held at once.

    Linux's ``ru_maxrss`` counts what the parent held when it started this process; ``VmHWM`` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].removesuffix("kB")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES


def _ignore(_report: Advance | Saved) -> None:
    """Nobody watches a rehearsal's progress."""


def main(arguments: Sequence[str]) -> int:
    """Read the request, rehearse, write the report; the process's own outcome is always 0."""
    request_path, report_path = map(Path, arguments)
    print_anything()
    sys.argv[1:] = []  # the task's code may parse it when it is imported; a volunteer's is empty as well
    request = RehearsalRequest.model_validate_json(request_path.read_bytes())
    work_beside(request.code_dir, request.entry)
    report_path.write_text(rehearse(request).model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
