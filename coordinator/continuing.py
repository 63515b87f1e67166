"""Where a task begins that goes on from another's checkpoint: at its round, in its epoch, at its sample.

``n`` rounds and then ``m`` more are the ``n + m`` rounds of one task: the same samples in the same order, the same
steps of every schedule, the same optimizer states, as far as ``protocol.continuing`` finds that they fit.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.planning import count_samples
from coordinator.records import CheckpointRecord, TaskRecord
from coordinator.stopping import is_finished
from protocol.continuing import obstacle, taken_over
from protocol.errors import InvalidTask
from protocol.tasks import Split, TaskSpec
from protocol.wording import counted


def start_from(task_id: str, spec: TaskSpec, before: TaskSpec, checkpoint: CheckpointRecord) -> CheckpointRecord:
    """Return the checkpoint that the task ``task_id`` begins with: one of ``before``, with what of it fits.

    It has no manifest: like submitted weights it was not written by this task. Raises: InvalidTask.
    """
    if (why := obstacle(before, spec)) is not None:
        raise InvalidTask(why)
    if spec.initial_weights.digest != checkpoint.weights.digest:
        raise InvalidTask(f"the initial weights are not those of {checkpoint.task_id}@{checkpoint.round}")
    taken = taken_over(before, spec)
    return replace(
        checkpoint,
        task_id=task_id,
        weights=spec.initial_weights,
        optimizer=checkpoint.optimizer if taken.optimizer else None,
        inner_state=checkpoint.inner_state if taken.inner_state else None,
        manifest=None,
    )


def at_start(record: TaskRecord, start: CheckpointRecord) -> TaskRecord:
    """Return the task with its books as they are at that checkpoint."""
    return replace(
        record,
        version=start.round,
        epoch=start.epoch,
        epochs_ended=start.epoch,
        cursor=start.cursor,
        leftover=start.leftover,
        samples_done=_samples_before(start, record.spec),
        metrics=start.metrics,
    )


def check_goes_on(record: TaskRecord) -> None:
    """Raise InvalidTask unless something is left to train."""
    if is_finished(record):
        raise InvalidTask(
            f"nothing is left to train: {counted(record.version, 'round')} were trained before; give more --rounds, "
            "such as +20"
        )


def _samples_before(start: CheckpointRecord, spec: TaskSpec) -> int:
    """Count what was trained: all before the cursor, but for what is still owed of it."""
    return start.epoch * spec.dataset.samples(Split.TRAIN) + start.cursor - count_samples(start.leftover)
