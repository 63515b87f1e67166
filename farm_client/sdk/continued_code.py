"""The code of a task that goes on, fetched from the farm and built here, with its new recipe or its new config.

A model must stay the one that the checkpoint is of, and the data as many rows: what a config may change is the rest,
such as rates, augmentation, or the weight of a term of the loss.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from farm_client.executor.rehearsal_records import RehearsalReport
from farm_client.sdk.api import FarmApi
from farm_client.sdk.bundle import Bundle
from farm_client.sdk.check import Trial, run_trial
from farm_client.sdk.download import download_weights
from farm_client.sdk.warm_start import Start, find_warm_start
from protocol.errors import InvalidTask
from protocol.recipe import Recipe
from protocol.tasks import Split, TaskSpec


def build_again(api: FarmApi, spec: TaskSpec, recipe: Recipe, *, has_new_config: bool) -> RehearsalReport:
    """Build the task's model, optimizer and schedules here, without trying a batch; return what was found.

    Raises: CheckFailed, NotFound; InvalidTask for what only a submission can build, and for a new config with which
    the model is not that of the checkpoint any more.
    """
    if spec.base:
        what = "another config" if has_new_config else "gradients mode"
        raise InvalidTask(
            f"{what} needs what the code builds from its base folder: submit it again with --base and --from"
        )
    with tempfile.TemporaryDirectory(prefix="aifarm-continue-") as name:
        folder = Path(name)
        download_weights(api, spec.code, folder / "code.zip")
        report = run_trial(_trial(spec, recipe, (folder / "code.zip").read_bytes(), has_new_config), folder)
        if has_new_config:
            _refuse_other_model(api, spec, report)
    return report


def _trial(spec: TaskSpec, recipe: Recipe, code: bytes, has_new_config: bool) -> Trial:
    rows_before = sum(shard.samples for shard in spec.dataset.shards)
    return Trial(
        bundle=Bundle(code, spec.entry),
        config=spec.config,
        mode=recipe.mode,
        batch_samples=recipe.batch_samples,
        seed=recipe.seed,
        rows=spec.dataset.samples(Split.TRAIN),
        rows_before=rows_before if has_new_config and spec.dataset.kind == "code" else None,
        tries_batch=False,
        order=recipe.order,
        inner_state=recipe.inner_state,
        ignore=recipe.ignore,
        tuple_columns=recipe.tuple_columns,
        clip_norm=recipe.clip_norm,
        clip_value=recipe.clip_value,
        precision=recipe.precision,
        rounds=recipe.rounds,
        epochs=recipe.epochs,
        round_samples=recipe.round_samples,
        schedule=recipe.schedule,
    )


def _refuse_other_model(api: FarmApi, spec: TaskSpec, report: RehearsalReport) -> None:
    if spec.continues is None:
        raise RuntimeError("a task that goes on names its checkpoint")
    kept = find_warm_start(api, spec.continues.task_id, spec.continues.round)
    built = Start.of(Path(report.weights_path), Path(report.frozen_path) if report.frozen_path else None)
    if (why := kept.differs_from(built)) is not None:
        raise InvalidTask(
            f"with this config the model is not that of {kept.label}: {why}. Leave that value as it was, or submit a "
            "task of its own"
        )
