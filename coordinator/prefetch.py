"""Which shards a client has, which it is likely to need in the next round, and what that round is likely to be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from coordinator.planning import Line, without_stray
from coordinator.records import AssignmentRecord, SampleRange
from coordinator.state import ClientState, Step, TaskRun
from coordinator.stopping import evaluation_is_due, is_finished
from protocol.aggregates import AggregateName
from protocol.assignments import Kind
from protocol.compression import CodecName
from protocol.privacy import is_private
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe
from protocol.task_length import smallest_part
from protocol.tasks import BlobRef

_MOST_RANGES: Final = 256
"""Of a round that is foretold: a longer list costs more than it saves."""


def held_shards(run: TaskRun, client: ClientState) -> Collection[int]:
    """Return the indices of the task's shards that the client is known to hold; none where there are no files."""
    if not client.cached:
        return ()
    shards = run.shards_by_digest()
    held = client.cached & shards.keys()
    return {index for digest in held for index in shards[digest]}


def likely_next(run: TaskRun, client: ClientState, record: AssignmentRecord, stripe_shards: int) -> tuple[BlobRef, ...]:
    """Return the shards of the next round's part that is in the same place as this one, which the client lacks.

    Who trains what is decided when that round opens; with the same clients it is the same part again.
    """
    step = run.step
    if step is None or not step.policy.brings_updates or run.record.spec.dataset.kind != "files":
        return ()
    line = _upcoming(run, step, stripe_shards)
    if not line:
        return ()
    start = record.position % max(step.samples, 1)
    shards, others = run.record.spec.dataset.shards, {}
    for index in line.between(start, start + record.samples):
        blob = shards[index].blob
        if blob is not None and blob.digest not in client.cached:
            others[blob.digest] = blob
    for own in record.ranges:
        if (blob := shards[own.shard].blob) is not None:
            others.pop(blob.digest, None)
    return tuple(others.values())[:256]


def _upcoming(run: TaskRun, step: Step, stripe_shards: int) -> Line:
    """Return what the next round is likely to be, worked out once for all parts of this one."""
    if step.upcoming is None or step.upcoming[0] != step.next_cursor:
        step.upcoming = (step.next_cursor, Line(run.take(step.next_cursor, step.samples, stripe_shards)))
    return step.upcoming[1]


def likely_round(run: TaskRun, record: AssignmentRecord, stripe_shards: int) -> tuple[SampleRange, ...]:
    """Return what the next round hands out if this part, which is all of its round, comes back and nothing else does.

    Nothing where its client could not know that round's weights, or where something else comes first: an evaluation,
    another epoch, the end. It is a guess, and no books go by it: who is to train what is decided when the round opens.
    """
    step = run.step
    if step is None or step.kind is not Kind.TRAIN or record.samples != step.samples:
        return ()
    if (
        run.checkpoint.weights.is_small
        or not _is_foreseeable(run.record.spec.recipe)
        or not _follows_at_once(run, step)
    ):
        return ()
    recipe = run.record.spec.recipe
    left = sum(shard.samples for shard in run.order()) - step.next_cursor
    wanted = without_stray(recipe.round_samples, left, smallest_part(recipe))
    ranges = run.take(step.next_cursor, wanted, stripe_shards)
    return ranges if len(ranges) <= _MOST_RANGES else ()


def _is_foreseeable(recipe: Recipe) -> bool:
    """Whether one client's update makes the next version by plain averaging alone, and nobody goes on before."""
    return (
        recipe.mode is Mode.WEIGHTS
        and recipe.outer == OuterOptimizer()
        and recipe.aggregate is AggregateName.MEAN
        and not is_private(recipe)
        and recipe.update_codec.name is CodecName.NONE
        and recipe.weights_codec.name is CodecName.NONE
        and recipe.inner_state is not InnerState.CARRIED
        and not recipe.over_provision
        and not recipe.pipeline
        and recipe.buffer is None
        and recipe.quorum_clients is None
    )


def _follows_at_once(run: TaskRun, step: Step) -> bool:
    """Whether the next round of this epoch comes right after this one."""
    if step.carried or step.late_at_open or step.next_cursor >= sum(shard.samples for shard in run.order()):
        return False
    after = replace(run.record, version=step.number + 1, cursor=step.next_cursor, leftover=())
    return not is_finished(after) and not evaluation_is_due(after)
