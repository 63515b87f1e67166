"""From a researcher's function and data to a task that maps the one over the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from farm_client.data.guarded import RowSource
from farm_client.data.readers import open_data
from farm_client.data.sharding import PlannedShard, ShardOf, plan_shards, write_sample, write_shards
from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.executor.map_trial_records import MapTrialReport, MapTrialRequest
from farm_client.executor.messages import LoadTask, Piece, Run
from farm_client.executor.rehearsal_records import RehearsalReport
from farm_client.sdk.base_folder import base_blobs, read_base
from farm_client.sdk.bundle import Bundle, make_bundle
from farm_client.sdk.check import CheckFailed
from farm_client.sdk.child_process import ask_child
from farm_client.sdk.errors import first_problem
from farm_client.sdk.lock_files.reading import lock_blob
from farm_client.sdk.submission import MAX_NAME_CHARS, OnProgress, Prepared, check_config
from farm_client.sdk.submitter import ANONYMOUS
from farm_client.sdk.warm_start import WarmStart
from protocol.assignments import Kind
from protocol.bounds import MAX_COUNT
from protocol.errors import InvalidTask
from protocol.features import needed_by
from protocol.maps import MapPlan, OnError
from protocol.packing import pack_map
from protocol.recipe import Mode, Recipe, Requirements
from protocol.tasks import BaseFile, BlobRef, Dataset, Footprint, Shard, Split, TaskSpec

NO_WEIGHTS: Final = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
"""A weights file of no tensors."""
MODEL_NAME: Final = "model.safetensors"
FROZEN_NAME: Final = "frozen.safetensors"
"""What a farm task's weights are called in the folder that ``config["base"]`` names."""
TRIED_ITEMS: Final = 4
_OWN_WORDS: Final = ("setup", "base")
"""What the executor itself puts into ``config``."""


@dataclass(frozen=True)
class MapSubmission:
    """What the researcher maps over what: ``data`` files, or with ``items`` the numbers from 0 on.

    ``weights`` are a farm task's, which the function finds in the folder ``config["base"]``, as ``model.safetensors``.
    """

    code: Path
    data: tuple[Path, ...] = ()
    items: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    entry: str | None = None
    batch_items: int | None = None
    part_items: int | None = None
    on_error: OnError = OnError.SKIP
    seed: int = 0
    max_retries: int = 3
    row_bytes: int = DEFAULT_ROW_BYTES
    check: bool = True
    priority: int = 5
    submitter: str = ANONYMOUS
    submit_token: str | None = None
    requirements: Requirements = field(default_factory=Requirements)
    base: Path | None = None
    weights: WarmStart | None = None
    environment: Path | None = None


def prepare_map(submission: MapSubmission, folder: Path, on_progress: OnProgress | None = None) -> Prepared:
    """Try, shard and describe a map; ``folder`` (empty) holds the shards until they are uploaded.

    Raises: CheckFailed, InvalidTask, DataError: each with one sentence that says what to do.
    """
    try:
        return _prepare(submission, folder, on_progress or _ignore)
    except ValidationError as error:
        raise InvalidTask(first_problem(error)) from error


def _prepare(submission: MapSubmission, folder: Path, tell: OnProgress) -> Prepared:
    _check(submission)
    base = {} if submission.base is None else read_base(submission.base)
    environment, lock = lock_blob(submission.environment)
    source = open_data(submission.data, submission.row_bytes) if submission.data else None
    bundle = make_bundle(submission.code, submission.entry, without=(*submission.data, *base.values()))
    tell("checking", 0, 1)
    report = _tried(submission, bundle, source, folder)
    tell("checking", 1, 1)
    plan = MapPlan(
        part_items=submission.part_items,
        on_error=submission.on_error,
        batch_items=(submission.batch_items or 1) if report.takes_batches else 1,
    )
    files: dict[str, bytes | Path] = {}
    if source is None:
        dataset = _numbers(submission.items or 0)
    else:
        dataset, files = _sharded(source, folder, tell)
    named, base_files = base_blobs(base)
    if submission.weights is not None:
        names = zip((MODEL_NAME, FROZEN_NAME), submission.weights.parts, strict=False)
        named = (*named, *(BaseFile(path=name, blob=ref.bare()) for name, ref in names))
    no_weights = BlobRef.carrying(NO_WEIGHTS).bare()
    largest = max((shard.blob.size_bytes for shard in dataset.shards if shard.blob), default=0)
    stem = submission.code.resolve().stem.encode(errors="replace").decode()
    spec = TaskSpec(
        name=submission.name or stem[:MAX_NAME_CHARS] or "map",
        submitter=submission.submitter,
        code=bundle.blob,
        entry=bundle.entry,
        config=dict(submission.config),
        dataset=dataset,
        initial_weights=no_weights,
        base=named,
        environment=environment,
        recipe=Recipe(epochs=1, seed=submission.seed, max_retries=submission.max_retries, evaluate_every=0),
        requirements=submission.requirements,
        footprint=Footprint(peak_ram_bytes=report.peak_rss_bytes + 2 * largest, largest_shard_bytes=largest),
        priority=submission.priority,
        rehearsed=submission.check,
        map=plan,
        submit_token=submission.submit_token,
    )
    spec = spec.model_copy(update={"needs": needed_by(spec)})
    files |= {no_weights.digest: NO_WEIGHTS, bundle.blob.digest: bundle.data, **base_files, **lock}
    return Prepared(spec, files, RehearsalReport(tried=submission.check))


def _ignore(_what: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def _check(submission: MapSubmission) -> None:
    """Raise InvalidTask for what contradicts itself."""
    if bool(submission.data) == (submission.items is not None):
        raise InvalidTask("a map goes over files (--data), or over the numbers up to one (--range): give one of them")
    if submission.items is not None and not 1 <= submission.items <= MAX_COUNT:
        raise InvalidTask(f"--range {submission.items} has no item to map: give 1 or more")
    if taken := [word for word in _OWN_WORDS if word in submission.config]:
        raise InvalidTask(
            f"config has a value {taken[0]}, which is what the function finds its own things by: rename it"
        )
    if submission.base is not None and submission.weights is not None:
        raise InvalidTask("--base and --weights both fill the folder config['base']: give one of them")
    check_config(submission.config)
    pack_map(dict(submission.config))


def _numbers(items: int) -> Dataset:
    """Return the data of a range: its items are their own positions."""
    return Dataset(kind="code", shards=(Shard(index=0, samples=max(items, 1)),))


def _sharded(source: RowSource, folder: Path, tell: OnProgress) -> tuple[Dataset, dict[str, bytes | Path]]:
    """Write the rows to shards in the order of the data."""
    plan = plan_shards(source.rows, source.size_bytes, 0.0)
    shards_dir = folder / "shards"
    shards_dir.mkdir()
    shards, files = write_shards(
        source,
        plan,
        shards_dir,
        0,
        lambda done, rows: tell("sharding", done, rows),
        shard_of=_in_order(plan),
    )
    return Dataset(kind="files", shards=tuple(shards)), dict(files)


def _in_order(plan: list[PlannedShard]) -> ShardOf:
    """Return what says of each row in which shard it is, where the rows stay in the order of the data."""
    ends = np.cumsum([planned.samples for planned in plan])

    def find(first: int, count: int) -> NDArray[np.int64]:
        return np.searchsorted(ends, np.arange(first, first + count), side="right").astype(np.int64)

    return find


def _tried(submission: MapSubmission, bundle: Bundle, source: RowSource | None, folder: Path) -> MapTrialReport:
    """Run the function on the first items, in a process of its own. Raises: CheckFailed."""
    code_dir = folder / "code"
    bundle.unpack(code_dir)
    load = LoadTask(
        task_id="trial",
        code_dir=str(code_dir),
        base_dir=None if submission.base is None else str(submission.base.absolute()),
        entry=bundle.entry,
        config=dict(submission.config),
        mode=Mode.WEIGHTS,
        seed=submission.seed,
        batch_samples=1,
        dataset_kind="code" if source is None else "files",
        scratch_dir=str(folder / "scratch"),
        map=MapPlan(on_error=OnError.STOP, batch_items=submission.batch_items or 1),
    )
    request = MapTrialRequest(load=load, part=_first_part(submission, source, folder))
    answer = ask_child("farm_client.executor.map_trial", request.model_dump_json(), folder)
    if answer.report is None:
        what = f"{bundle.entry} ended its process while it was tried: exit code {answer.exit_code}"
        raise CheckFailed(what, None, answer.output)
    report = MapTrialReport.model_validate_json(answer.report)
    if report.failed is not None:
        raise CheckFailed(report.failed.message, report.failed.traceback, answer.output)
    return report


def _first_part(submission: MapSubmission, source: RowSource | None, folder: Path) -> Run | None:
    """Return the order for the first items; None where nothing is tried, for want of weights too."""
    if not submission.check or submission.weights is not None:
        return None
    path, rows = None, min(submission.items or 0, TRIED_ITEMS)
    if source is not None:
        path = folder / "sample.safetensors"
        rows = write_sample(source, TRIED_ITEMS, path)
    piece = Piece(
        shard=0,
        split=Split.TRAIN,
        shard_samples=rows,
        first_row=0,
        path=None if path is None else str(path),
        start=0,
        stop=rows,
    )
    return Run(assignment_id="trial", kind=Kind.MAP, round=0, epoch=0, weights_digest="0" * 64, pieces=(piece,))
