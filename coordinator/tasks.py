"""A task's life: submitted, paused, resumed, cancelled, retried, failed, completed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from coordinator.commands import ConfirmEnd, ForgetTask, ReleaseTask
from coordinator.continuing import at_start
from coordinator.deltas import forget_deltas
from coordinator.durability import roll_back
from coordinator.events import (
    Action,
    EndConfirmed,
    TaskAction,
    TaskPrioritized,
    TaskRecalled,
    TaskRemoved,
    TaskSubmitted,
)
from coordinator.evidence import Evidence
from coordinator.late_updates import drop_all_late
from coordinator.lifecycle import IllegalTransition, TaskState, move_task
from coordinator.offers import brief
from coordinator.pipelining import drop_all_ahead
from coordinator.records import CheckpointRecord, FailedStepRecord, TaskRecord
from coordinator.rounds import abandon
from coordinator.state import StepPhase, TaskRun
from coordinator.stopping import evaluation_is_due
from coordinator.throughput import DecayingSum
from coordinator.turn import Turn
from protocol.errors import Conflict
from protocol.messages import Pause, Resume
from protocol.wording import counted

_GOALS: Final = {
    Action.PAUSE: TaskState.PAUSED,
    Action.RESUME: TaskState.RUNNING,
    Action.CANCEL: TaskState.CANCELLED,
    Action.RETRY: TaskState.PENDING,
}
_OVER: Final = frozenset({TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED})


def new_run(record: TaskRecord, checkpoint: CheckpointRecord | None = None) -> TaskRun:
    """Put a task in memory; without a checkpoint it starts at its initial weights."""
    return TaskRun(
        record=record,
        checkpoint=checkpoint or initial_checkpoint(record),
        brief=brief(record.task_id, record.spec),
    )


def stored_run(
    record: TaskRecord, checkpoint: CheckpointRecord | None, failed_steps: Iterable[FailedStepRecord] = ()
) -> TaskRun:
    """Put a task in memory as the ledger has it: it goes on from its newest checkpoint."""
    run = new_run(record, checkpoint)
    run.failed_lines = {kept.line for kept in failed_steps if kept.task_id == record.task_id}
    run.evaluate_next = not run.checkpoint.metrics and evaluation_is_due(record)
    return run


def initial_checkpoint(task: TaskRecord) -> CheckpointRecord:
    """Return version 0: the weights that came with the submission."""
    return CheckpointRecord(
        task_id=task.task_id,
        round=0,
        epoch=0,
        cursor=0,
        weights=task.spec.initial_weights,
        optimizer=None,
        manifest=None,
        created_at=task.created_at,
    )


def check_submission(turn: Turn, event: TaskSubmitted) -> None:
    """Refuse what can't be taken, before anything changes. Raises: Conflict if the id is taken."""
    if event.task_id in turn.farm.tasks:
        raise Conflict(f"there is a task {event.task_id} already")


def submit(turn: Turn, event: TaskSubmitted) -> None:
    """Take a new task into the queue."""
    record = TaskRecord(
        task_id=event.task_id,
        spec=event.spec,
        state=TaskState.PENDING,
        created_at=turn.now,
        reason="submitted",
    )
    if event.start is not None:
        record = at_start(record, event.start)
    run = new_run(record, event.start)
    run.spent = level_spent(turn)
    turn.farm.add(run)
    turn.touched[run.task_id] = run
    turn.save(record)
    turn.save(run.checkpoint)
    turn.note("task_submitted", f"{event.spec.submitter} submitted {event.spec.name}", run)


def level_spent(turn: Turn) -> DecayingSum:
    """Let a task begin level with the one that had least of late: it is owed nothing for the time before it came."""
    least = min((run.spent.read(turn.now) for run in turn.farm.live.values()), default=0.0)
    return DecayingSum(turn.settings.usage_half_life_seconds, least, turn.now)


def check_action(turn: Turn, event: TaskAction) -> None:
    """Refuse what the task's state forbids, before anything changes. Raises: NotFound, IllegalTransition."""
    run = turn.farm.task(event.task_id)
    _check_may(run, event.action)
    move_task(run.task_id, run.record.state, _GOALS[event.action])


def act(turn: Turn, event: TaskAction) -> None:
    """Do a person's action on a task, which ``check_action`` allows."""
    run = turn.farm.task(event.task_id)
    by = f" by {event.by}" if event.by else ""
    match event.action:
        case Action.PAUSE:
            turn.move(run, TaskState.PAUSED, f"paused{by}")
            stop_work(turn, run, "the task was paused")
        case Action.RESUME:
            _resume(turn, run, f"resumed{by}")
        case Action.CANCEL:
            turn.move(run, TaskState.CANCELLED, f"cancelled{by}", finished_at=turn.now)
            stop_work(turn, run, "the task was cancelled")
        case Action.RETRY:
            turn.move(run, TaskState.PENDING, f"retried{by}", error=None, retries=0, not_before=0.0, finished_at=None)
            for client in turn.farm.clients.values():
                client.cooldowns.pop(run.task_id, None)
                client.failures.pop(run.task_id, None)
                client.lacks.pop(run.task_id, None)
                client.refuses.pop(run.task_id, None)


def check_priority(turn: Turn, event: TaskPrioritized) -> None:
    """Refuse what would change nothing, before anything changes. Raises: NotFound, Conflict if the task is over."""
    run = turn.farm.task(event.task_id)
    if run.record.state in _OVER - {TaskState.FAILED}:
        raise Conflict(f"task {run.task_id} is {run.record.state}: it waits for nothing any more")


def prioritize(turn: Turn, event: TaskPrioritized) -> None:
    """Serve a task sooner or later from now on; what its clients hold goes on."""
    run = turn.farm.task(event.task_id)
    before = run.record.priority
    turn.save(run.update(priority_set=event.priority))
    turn.note("task_prioritized", f"priority {event.priority}, before {before}", run)


def check_removal(turn: Turn, event: TaskRemoved) -> None:
    """Refuse to forget a task that may still train, before anything changes. Raises: NotFound, Conflict."""
    run = turn.farm.task(event.task_id)
    if run.record.state not in _OVER:
        raise Conflict(
            f"task {run.task_id} is {run.record.state}, and only one that is over can be removed; "
            f"`farm cancel {run.task_id}` ends it (or `farm rm --force`)"
        )


def remove(turn: Turn, event: TaskRemoved) -> None:
    """Drop a task that is over; it left nothing open."""
    run = turn.farm.task(event.task_id)
    turn.farm.drop(run.task_id)
    for client in turn.farm.clients.values():
        client.forget(run.task_id)
    turn.do(ForgetTask(run.task_id))
    turn.note("task_removed", f"{run.record.spec.name} ({run.task_id}) was removed")


def confirm_ends(turn: Turn) -> None:
    """Ask to be told when the ends of this turn are durable; until then the tasks stay in memory."""
    for run in turn.touched.values():
        if run.is_at_rest and turn.farm.tasks.get(run.task_id) is run:
            turn.do(ConfirmEnd(run.record))


def evict(turn: Turn, event: EndConfirmed) -> None:
    """A task's end is durable: the task leaves the memory, unless something happened to it since."""
    run = turn.farm.tasks.get(event.task_id)
    if run is not None and run.record is event.record and run.is_at_rest:
        turn.farm.evict(run)
        turn.do(ForgetTask(run.task_id))


def recall(turn: Turn, event: TaskRecalled) -> TaskRun:
    """Take an ended task back into memory; it is owed nothing for the time before."""
    run = stored_run(event.record, event.checkpoint, event.failed_steps)
    run.attempt = turn.farm.last_attempt
    run.spent = level_spent(turn)
    turn.farm.add(run)
    return run


def _check_may(run: TaskRun, action: Action) -> None:
    """Some edges are there for the farm's own moves, and a person has no use for them."""
    state = run.record.state
    if action is Action.RESUME and state is not TaskState.PAUSED:
        raise IllegalTransition(f"task {run.task_id} is {state} and cannot become running: only a paused task resumes")
    if action is Action.RETRY and state is not TaskState.FAILED:
        raise IllegalTransition(f"task {run.task_id} is {state} and cannot become pending: only a failed task retries")


def _resume(turn: Turn, run: TaskRun, message: str) -> None:
    started = run.record.started_at is not None
    turn.move(run, TaskState.RUNNING if started else TaskState.PENDING, message)
    for client_id in sorted(run.participants):  # of those that left meanwhile nobody hears
        turn.send_to(client_id, Resume(task_id=run.task_id))


def stop_work(turn: Turn, run: TaskRun, why: str) -> None:
    """Give up the open step and free what clients and server hold for the task."""
    abandon(turn, run, why)
    drop_all_ahead(turn, run, why)
    drop_all_late(turn, run, why)
    forget_deltas(turn, run)
    roll_back(turn, run, why)
    for client_id in sorted(run.participants):
        turn.send_to(client_id, Pause(task_id=run.task_id, reason=why))
    turn.do(ReleaseTask(run.task_id))


def complete(turn: Turn, run: TaskRun) -> None:
    """The recipe is fulfilled."""
    if run.record.state is TaskState.PENDING:  # its last attempt ended when all was trained already
        turn.move(run, TaskState.ASSIGNED, "nothing is left to train")
    if run.record.state is TaskState.ASSIGNED:
        turn.move(run, TaskState.RUNNING, "its last evaluation was given up")
    early = f", and stopped: {run.record.stopped}" if run.record.stopped else ""
    did = f"trained {counted(run.record.version, 'round')}"
    if run.record.spec.map is not None:
        failed = f", of which {run.record.items_failed} failed" if run.record.items_failed else ""
        did = f"mapped {counted(run.record.samples_done, 'item')}{failed}"
    reason = f"{did}{early}"
    turn.move(run, TaskState.COMPLETED, reason, finished_at=turn.now)
    stop_work(turn, run, "the task is complete")


def back_to_waiting(turn: Turn, run: TaskRun, why: Callable[[], str], *, deserted: bool) -> None:
    """Nobody works on a task: it waits for clients. What was delivered of an open round is kept.

    ``why`` is asked for only where something changes: a round may stay open for a long time, until its clients return.
    ``deserted``: all of its clients are gone, rather than resting. It does not wait longer than for their return the
    first time; after each further time without a result in between, it waits longer before it begins anew.
    """
    if run.step is not None and run.step.phase is StepPhase.COMMIT:
        return  # it waits for nobody
    if run.step is not None and not (run.step.parts.delivered or run.step.parts.dormant):
        abandon(turn, run, why())
    if run.record.state not in (TaskState.ASSIGNED, TaskState.RUNNING):
        return
    run.desertions += deserted
    if not deserted or run.desertions == 1:
        turn.move(run, TaskState.PENDING, why())
        return
    wait = turn.settings.desertion_retry.delay_seconds(run.desertions - 1, turn.draw())
    again = f"all of its clients left, {run.desertions} times in a row without a result"
    turn.move(run, TaskState.PENDING, again, not_before=turn.now + wait)


def wait_for_server(turn: Turn, run: TaskRun, why: str) -> None:
    """The server could not go on, for no fault of the task: it begins again after a backoff, and loses no retry."""
    stop_work(turn, run, why)
    run.server_faults += 1
    if run.record.state not in (TaskState.ASSIGNED, TaskState.RUNNING):
        return
    policy = turn.settings.task_retry
    wait = policy.bound_seconds(run.server_faults) / 2 + policy.delay_seconds(run.server_faults, turn.draw()) / 2
    turn.move(run, TaskState.PENDING, f"the server could not go on: {why}", not_before=turn.now + wait)


def fail(turn: Turn, run: TaskRun, error: str, retryable: bool) -> None:
    """The task failed. A retryable failure starts over from the last commit after a backoff, ``max_retries`` times."""
    stop_work(turn, run, error)
    run.evidence = Evidence()
    end_attempt(turn, run, error, retryable)


def end_attempt(turn: Turn, run: TaskRun, error: str, retryable: bool) -> None:
    """Fail a task on which nobody works any more; see ``fail``."""
    turn.move(run, TaskState.FAILED, error, error=error, finished_at=turn.now)
    retries = run.record.retries + 1
    if not retryable or retries > run.record.spec.recipe.max_retries:
        return
    wait = turn.settings.task_retry.delay_seconds(retries, turn.draw())
    message = f"retry {retries} of {run.record.spec.recipe.max_retries} in {wait:.0f} s after: {error}"
    turn.move(run, TaskState.PENDING, message, retries=retries, not_before=turn.now + wait, finished_at=None)
