"""From a researcher's files to a task specification and the blobs that it names; uploading them is `upload`'s."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from farm_client.data.guarded import RowSource
from farm_client.data.readers import open_data
from farm_client.data.sharding import PlannedShard, plan_shards, write_shards
from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.executor.rehearsal_records import RehearsalReport
from farm_client.sdk.base_folder import base_blobs, read_base
from farm_client.sdk.bundle import Bundle, make_bundle
from farm_client.sdk.check import Trial, folder_of, run_trial
from farm_client.sdk.data_split import split_of
from farm_client.sdk.default_mode import (
    LinkEstimate,
    ModeChoice,
    TrialFacts,
    choose_for_script,
    choose_mode,
    leaves_the_mode_open,
    notes_on_averaging,
    passes,
    with_passes_said,
)
from farm_client.sdk.errors import first_problem
from farm_client.sdk.lock_files.reading import lock_blob
from farm_client.sdk.rows_in_order import order_notes, stretches_of, whole_batches
from farm_client.sdk.submitter import ANONYMOUS
from farm_client.sdk.warm_start import Start, WarmStart
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask
from protocol.features import needed_by
from protocol.limits import MAX_CONFIG_BYTES
from protocol.recipe import Mode, Recipe, Requirements
from protocol.tasks import MAX_NOTES, Dataset, Footprint, Shard, Split, TaskSpec
from protocol.wording import sized

MAX_NAME_CHARS: Final = 200
MAX_ROUND_SAMPLES: Final = 65_536
"""Weights mode, by default: a round is the whole training split, up to this many samples."""
GRADIENT_BATCHES: Final = 8
"""Gradients mode, by default: a round (one optimizer step) is so many times ``batch_samples``."""
CODE_ROW_BYTES: Final = 4096
"""What a row of a data set made by code is taken to weigh when it is cut into shards."""
OUTER_HAS_ITS_OWN: Final = (
    "in gradients mode schedule is of the optimizer that the code builds, and the recipe has an outer one: leave out "
    "one of them, or write the outer one's rates into outer.schedules"
)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much of it is done."""


@dataclass(frozen=True)
class Submission:
    """What the researcher submits. Recipe fields that were not set get this module's defaults.

    ``batch``: "dict", "tuple" (of all columns, in the data file's order), or the columns of the tuple.

    ``row_bytes`` is a text file's row. ``samples`` is the size of a data set that only ``load_shard`` knows.
    ``base`` is a folder that ``build_model`` starts from, which it is given as ``config["base"]``. ``environment`` is
    the lock file of the packages that the code imports (``sdk.lock_files``). ``topics`` say what the task is about.
    ``warm_start`` takes the place of the weights that ``build_model`` starts with. Where ``chosen_for`` is given, a
    recipe that leaves the mode open gets the one that suits this link.
    """

    code: Path
    recipe: Recipe
    data: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    entry: str | None = None
    holdout: float = 0.0
    batch: str | tuple[str, ...] = "dict"
    row_bytes: int = DEFAULT_ROW_BYTES
    samples: int | None = None
    check: bool = True
    priority: int = 5
    topics: tuple[str, ...] = ()
    submitter: str = ANONYMOUS
    submit_token: str | None = None
    requirements: Requirements = field(default_factory=Requirements)
    warm_start: WarmStart | None = None
    base: Path | None = None
    environment: Path | None = None
    chosen_for: LinkEstimate | None = None


@dataclass(frozen=True)
class Prepared:
    """A task that can be submitted once the farm holds ``blobs`` (bytes, or the file with them, by digest).

    ``choice`` is there where the recipe left the mode open.
    """

    spec: TaskSpec
    blobs: dict[str, bytes | Path]
    report: RehearsalReport
    notes: tuple[str, ...] = ()
    choice: ModeChoice | None = None


def prepare(submission: Submission, folder: Path, on_progress: OnProgress | None = None) -> Prepared:
    """Check, shard and describe a task; ``folder`` (empty) holds the shards and weights until they are uploaded.

    Raises: CheckFailed, InvalidTask, DataError: each with one sentence that says what to do.
    """
    try:
        return _prepare(submission, folder, on_progress or _ignore)
    except ValidationError as error:
        raise InvalidTask(first_problem(error)) from error


def _prepare(submission: Submission, folder: Path, tell: OnProgress) -> Prepared:
    check_config(submission.config)
    base = {} if submission.base is None else read_base(submission.base)
    environment, lock = lock_blob(submission.environment)
    source = open_data(submission.data, submission.row_bytes) if submission.data else None
    submission = replace(submission, recipe=with_tuple_columns(submission.recipe, submission.batch, source))
    bundle = make_bundle(submission.code, submission.entry, without=(*submission.data, *base.values()))
    tell("checking", 0, 1)
    report = run_trial(_trial(submission, bundle, source), folder)
    tell("checking", 1, 1)
    _check_best(submission.recipe.keep_best, report.evaluation)
    dataset, files = _sharded(submission, source, report, folder, tell)
    choice = _choice(submission, report, dataset)
    if choice is not None:
        submission = replace(submission, recipe=submission.recipe.model_copy(update=choice.changes))
        if choice.mode is not report.mode:
            again = folder / choice.mode
            again.mkdir()
            report = run_trial(_trial(submission, bundle, source), again)
    files[bundle.blob.digest] = bundle.data
    named, base_files = base_blobs(base)
    files |= base_files
    files |= lock
    start = _start(submission, report, folder)
    files |= start.files
    rows = (report.rows or 0) if source is None else source.rows
    ordered = order_notes(submission.recipe, dataset, rows, has_state=report.has_state)
    averaging = notes_on_averaging(submission.recipe) if choice is None else ()
    notes = (*(() if source is None else source.notes), *ordered, *report.notes, *averaging)
    chosen = () if choice is None else (choice.sentence,)
    spec = TaskSpec(
        name=submission.name or _default_name(submission.code),
        submitter=submission.submitter,
        topics=submission.topics,
        code=bundle.blob,
        entry=bundle.entry,
        config=dict(submission.config),
        dataset=dataset,
        initial_weights=start.weights,
        frozen=start.frozen,
        base=named,
        environment=environment,
        model_files=report.model_files,
        recipe=complete_recipe(submission.recipe, dataset, report),
        requirements=submission.requirements,
        footprint=_footprint(dataset, report),
        priority=submission.priority,
        rehearsed=submission.check,
        has_scheduler=report.has_scheduler,
        is_quantized=report.is_quantized,
        reads_length=report.reads_length,
        epoch_end=report.epoch_end,
        submit_token=submission.submit_token,
        notes=(*chosen, *notes)[:MAX_NOTES],
    )
    if why := contradiction(spec.recipe, dataset):
        raise InvalidTask(f"the recipe contradicts itself: {why}")
    spec = spec.model_copy(update={"needs": needed_by(spec)})
    return Prepared(spec, files, report, notes, choice)


def _choice(submission: Submission, report: RehearsalReport, dataset: Dataset) -> ModeChoice | None:
    if submission.chosen_for is None or not leaves_the_mode_open(submission.recipe):
        return None
    if report.is_script:
        return with_passes_said(choose_for_script(submission.recipe, carries=report.carries), submission.recipe)
    facts = TrialFacts(report.obstacle, report.weights_bytes, report.batch_seconds, dataset.samples(Split.TRAIN))
    return with_passes_said(choose_mode(submission.recipe, facts, submission.chosen_for), submission.recipe)


def _default_name(code: Path) -> str:
    """Return what a task is called that nobody named: as its file or folder, as far as that is text."""
    stem = code.resolve().stem.encode(errors="replace").decode()
    return stem[:MAX_NAME_CHARS] or "task"


def with_tuple_columns(recipe: Recipe, batch: str | tuple[str, ...], source: RowSource | None) -> Recipe:
    """Write the form of a batch into the recipe, so that all clients have the columns in one order.

    Raises: InvalidTask if the columns are not known here.
    """
    if batch == "dict":
        return recipe
    if batch != "tuple":
        names = tuple(name.strip() for name in batch.split(",")) if isinstance(batch, str) else batch
        # Not a copy, which would take any names: these come from the command line.
        return Recipe.model_validate(recipe.model_dump(exclude_unset=True) | {"tuple_columns": names})
    if source is None:
        raise InvalidTask(
            "--batch tuple takes the columns of --data; name those that load_shard returns, as in --batch x,y (tuples "
            "of make_dataset are tuples in any case)"
        )
    return recipe.model_copy(update={"tuple_columns": tuple(column.name for column in source.columns)})


def complete_recipe(recipe: Recipe, dataset: Dataset, report: RehearsalReport) -> Recipe:
    """Fill the fields that the researcher did not set: the round's samples, evaluation, and the outer optimizer.

    Evaluation is by default once an epoch; in gradients mode the outer optimizer is the one of ``build_optimizer``.
    """
    train = dataset.samples(Split.TRAIN)
    is_gradients = recipe.mode is Mode.GRADIENTS
    values: dict[str, Any] = {"round_samples": whole_batches(recipe, min(train, _most_round_samples(recipe)))}
    round_samples = recipe.round_samples if "round_samples" in recipe.model_fields_set else values["round_samples"]
    values["evaluate_every"] = max(1, math.ceil(train / round_samples))
    if is_gradients and recipe.schedule is not None and "outer" in recipe.model_fields_set:
        raise InvalidTask(OUTER_HAS_ITS_OWN)
    if is_gradients and report.outer is not None:
        values["outer"] = report.outer
    completed = recipe.model_copy(update={k: v for k, v in values.items() if k not in recipe.model_fields_set})
    if report.evaluates:
        return completed
    _refuse_metrics(recipe)
    return completed.model_copy(update={"evaluate_every": 0})


def _most_round_samples(recipe: Recipe) -> int:
    """Return how large a round is by default, if the data has so many rows."""
    return GRADIENT_BATCHES * recipe.batch_samples if recipe.mode is Mode.GRADIENTS else MAX_ROUND_SAMPLES


def _refuse_metrics(recipe: Recipe) -> None:
    """Raise InvalidTask if the recipe wants held-out metrics of a script that gives no function for them."""
    wants = {"keep_best": recipe.keep_best, "evaluate_every": "evaluate_every" in recipe.model_fields_set}
    if wanted := [name for name, is_wanted in wants.items() if is_wanted]:
        raise InvalidTask(
            f"{wanted[0]} needs held-out metrics: give farm.parts(model, evaluate=function) a function for them"
        )


def _trial(submission: Submission, bundle: Bundle, source: RowSource | None) -> Trial:
    is_open = submission.chosen_for is not None and leaves_the_mode_open(submission.recipe)
    return Trial(
        bundle=bundle,
        config=submission.config,
        mode=None if is_open else submission.recipe.mode,
        batch_samples=submission.recipe.batch_samples,
        seed=submission.recipe.seed,
        source=source,
        rows=submission.samples,
        tries_batch=submission.check,
        order=submission.recipe.order,
        inner_state=submission.recipe.inner_state,
        update_codec=submission.recipe.update_codec,
        ignore=submission.recipe.ignore,
        tuple_columns=submission.recipe.tuple_columns,
        clip_norm=submission.recipe.clip_norm,
        clip_value=submission.recipe.clip_value,
        proximal_mu=submission.recipe.proximal_mu,
        fragments=submission.recipe.fragments,
        fragment_pattern=submission.recipe.fragment_pattern,
        fragment_mix=submission.recipe.fragment_mix,
        scaffold_clients=submission.recipe.scaffold_clients,
        schedule=submission.recipe.schedule,
        precision=submission.recipe.precision,
        compile=submission.recipe.compile,
        base=submission.base,
        beside=folder_of(submission.code),
        holdout=submission.holdout,
        **length_settings(submission.recipe),
    )


def length_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what says how long the task is; where the mode is open, rounds are passes of rounds of a batch."""
    given = recipe.model_fields_set
    default = _most_round_samples(recipe) if "mode" in given else recipe.batch_samples
    round_samples = recipe.round_samples if "round_samples" in given else default
    if "mode" in given:
        return {"rounds": recipe.rounds, "epochs": recipe.epochs, "round_samples": round_samples}
    return {"epochs": passes(recipe), "round_samples": round_samples}


def _start(submission: Submission, report: RehearsalReport, folder: Path) -> Start:
    """Return the weights that training begins with, and their files unless the farm holds them."""
    built = Start.of(Path(report.weights_path), Path(report.frozen_path) if report.frozen_path else None)
    return built if submission.warm_start is None else submission.warm_start.fitted_to(built, folder)


def _sharded(
    submission: Submission, source: RowSource | None, report: RehearsalReport, folder: Path, tell: OnProgress
) -> tuple[Dataset, dict[str, bytes | Path]]:
    rows = (report.rows or 0) if source is None else source.rows
    size_bytes = rows * CODE_ROW_BYTES if source is None else source.size_bytes
    stretches = stretches_of(submission.recipe, rows, size_bytes, submission.holdout)
    split = split_of(submission.recipe, source, submission.holdout)
    laid_out = split or stretches
    plan = plan_shards(rows, size_bytes, submission.holdout) if laid_out is None else laid_out.shards()
    if source is None:
        return Dataset(kind="code", shards=tuple(_ranges(plan))), {}
    shards_dir = folder / "shards"
    shards_dir.mkdir()
    shards, files = write_shards(
        source,
        plan,
        shards_dir,
        submission.recipe.seed,
        lambda done, rows: tell("sharding", done, rows),
        shard_of=None if laid_out is None else laid_out.shard_of,
    )
    return Dataset(kind="files", shards=tuple(shards), parts=() if split is None else split.parts), dict(files)


def _ranges(plan: list[PlannedShard]) -> list[Shard]:
    shards, start = [], 0
    for index, planned in enumerate(plan):
        placed = planned if planned.stride else replace(planned, start=start)
        shards.append(placed.shard(index))
        start += planned.samples
    return shards


def _footprint(dataset: Dataset, report: RehearsalReport) -> Footprint:
    """Return the memory estimate: the rehearsal held a few rows, a volunteer holds whole shards."""
    largest = max((shard.blob.size_bytes for shard in dataset.shards if shard.blob), default=0)
    return Footprint(
        weights_bytes=report.weights_bytes + report.frozen_bytes,
        peak_ram_bytes=report.peak_rss_bytes + 2 * largest,
        largest_shard_bytes=largest,
    )


def _check_best(rule: str | None, measured: Mapping[str, float]) -> None:
    """Refuse to keep the best by a metric that the evaluation, where it was tried, does not measure."""
    metric = (rule or "").partition(":")[2]
    if not metric or not measured or metric in measured:
        return
    near = get_close_matches(metric, measured, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it measures {', '.join(sorted(measured))}"
    raise InvalidTask(f"keep_best is {rule!r}, and the evaluation measures no {metric!r}: {hint}")


def check_config(config: Mapping[str, Any]) -> None:
    """Raise InvalidTask for a config that no message can carry."""
    try:
        size = len(json.dumps(config, allow_nan=False, ensure_ascii=False).encode())
    except RecursionError as error:
        raise InvalidTask("the config is nested too deeply: put it into a file of your code") from error
    except (TypeError, ValueError) as error:
        raise InvalidTask(
            f"the config cannot be sent: {error}; use numbers, strings, booleans, lists, tables"
        ) from error
    if size > MAX_CONFIG_BYTES:
        raise InvalidTask(
            f"the config has {sized(size)}, over {sized(MAX_CONFIG_BYTES)}: put large values into a file or data"
        )


def _ignore(_what: str, _done: int, _total: int) -> None:
    """Nobody watches."""
