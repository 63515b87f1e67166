"""Assignments that fail or are handed back, and whose fault that is."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coordinator.epoch_ends import was_told
from coordinator.events import AssignmentFailed, AssignmentRejected
from coordinator.evidence import Death, Evidence, death_of
from coordinator.failed_steps import keep_failed_step
from coordinator.follows import Follows
from coordinator.in_flight import Stage
from coordinator.lifecycle import AssignmentState
from coordinator.narrowing import ENDED_ON_ITS_ITEMS
from coordinator.offers import give_up, settle_uncounted, trip
from coordinator.poison import narrow_down
from coordinator.state import ClientState, Cooldown, TaskRun
from coordinator.step_ends import go_on
from coordinator.stints import end_stint
from coordinator.tasks import fail
from coordinator.turn import Turn
from coordinator.witnesses import askable, convinces, counts
from protocol.assignments import RejectCode
from protocol.messages import Scope

OUT_OF_MEMORY: Final = "out_of_memory"
MISSING_MODULE: Final = "missing_module"
"""The code of a failure that is the machine's lack: it is not asked again before it comes with another connection."""


def rejected(turn: Turn, event: AssignmentRejected) -> None:
    """A client hands an assignment back undone; it is not offered it again at once."""
    why = f"{event.code.replace('_', ' ')}: {event.message}"
    lease = turn.farm.leases.get(event.assignment_id)
    given_up = _give_up(turn, event, why, AssignmentState.REJECTED)
    if given_up is None:
        return
    run, client = given_up
    if event.code is RejectCode.DOES_NOT_FIT:
        wait = turn.settings.does_not_fit_seconds
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"it does not fit: {event.message}")
    elif event.code is RejectCode.OWNER:
        if lease is None or client.wanted.why_not(lease.record.kind, run.record.spec.topics) is None:
            client.refuses[run.task_id] = event.message  # what it told by itself needs no note, and ends by itself
        end_stint(client, run)
    elif event.code is RejectCode.ENVIRONMENT:
        client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)
        client.cooldowns[run.task_id].reason = f"has not the task's environment: {event.message}"
        end_stint(client, run)
    elif event.code is RejectCode.DRAINING:
        client.draining = True
    else:
        wait = turn.settings.client_retry.bound_seconds(1)
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"{event.code}: {event.message}")


def _give_up(
    turn: Turn, event: AssignmentRejected | AssignmentFailed, why: str, to: AssignmentState
) -> tuple[TaskRun, ClientState] | None:
    """End the assignment that the sender holds, so that others get its samples; return its task and client.

    None where nothing more follows: the sender holds none of that name any more, or its round went on without it.
    """
    lease = turn.farm.leases.find(event, Stage.HELD, Stage.DORMANT)
    if lease is None:
        return None
    run = turn.farm.tasks[lease.record.task_id]
    client = give_up(turn, run, lease, to, why)
    is_unnoticed = lease.is_late and not run.policy(lease.record.kind).hands_out
    return None if is_unnoticed else (run, client)


def failed(turn: Turn, event: AssignmentFailed) -> None:
    """An assignment went wrong: somebody else gets it, unless the researcher's code is at fault everywhere.

    It may be the server that found so: then the client keeps the result until it hears that nobody wants it.
    """
    turn.put_at_stake(event)
    settle_uncounted(turn, event, f"not counted: {event.message}")
    lease = turn.farm.leases.get(event.assignment_id)
    given_up = _give_up(turn, event, f"{event.code}: {event.message}", AssignmentState.FAILED)
    if given_up is None or lease is None:
        return
    run, client = given_up
    if event.servers_fault:
        wait = turn.settings.client_retry.bound_seconds(1)
        client.cooldowns[run.task_id] = Cooldown(
            turn.now + wait, f"the server could not take its result: {event.message}"
        )
        return
    if run.policy(lease.record.kind).is_optional:
        _weigh_optional(turn, run, client, event)
        return
    turn.log(run, client, event.traceback or event.message)
    keep_failed_step(turn, run, client, event)
    if event.code == MISSING_MODULE:
        client.lacks[run.task_id] = event.message
        return
    client.record = replace(client.record, failed=client.record.failed + 1)
    turn.save(client.record)
    if run.policy(lease.record.kind).brings_outputs and event.code in ENDED_ON_ITS_ITEMS:
        if run.suspects.stretch_of(lease.record.position, lease.record.position + lease.record.samples) is None:
            _put_aside(turn, run, client, event)
        else:  # it says more of the items than of the machine
            wait = turn.settings.client_retry.bound_seconds(1)
            client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"its executor ended: {event.message}")
        narrow_down(turn, run, client, lease.record, event.message)
        return
    run.evidence.parts.add(lease.record.position)
    _weigh(turn, run, client, event)


def _weigh(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    """Find out whose fault it is: the task ends, or the client is kept off it for a while."""
    run.evidence.since = min(run.evidence.since, turn.now)
    run.evidence.failures += counts(turn, run, client)
    death = death_of(event.code, event.message)
    if death is not None and _died(turn, run, client, death):
        _forgive(turn, run)
        fail(turn, run, f"the task's code ends its executor, on every client: {event.message}", retryable=False)
    elif event.scope is Scope.NOBODY and _code_failed(turn, run, client, event):
        where = "a client" if len(run.evidence.code) == 1 else f"{len(run.evidence.code)} clients"
        fail(turn, run, f"the task's code failed on {where}: {event.message}", retryable=False)
    elif run.evidence.failures >= turn.settings.round_failures:
        why = f"{run.evidence.failures} assignments failed, the last one: {event.message}"
        fail(turn, run, why, retryable=True)
    else:
        _put_aside(turn, run, client, event)


def _weigh_optional(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    """A step failed that the task can go on without: it does, unless another client may succeed."""
    if not was_told(run, event.message):
        turn.log(run, client, event.traceback or event.message)
    run.evidence.code[client.client_id] = event.message
    others = {c.client_id for c in askable(turn, run)} - run.evidence.code.keys()
    if event.scope is Scope.NOBODY or not others:
        run.evidence = Evidence()
        if run.step is not None and run.step.policy.is_optional:
            go_on(turn, run, run.step, Follows.SKIP, event.message)
    else:
        client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)


def _put_aside(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    """Keep the client off the task for a while: somebody else gets the part."""
    is_full = event.code == OUT_OF_MEMORY
    policy = turn.settings.memory_retry if is_full else turn.settings.client_retry
    client.back_off(run.task_id, event.message, policy, turn.now)
    if event.scope is not Scope.NOBODY and not is_full:
        trip(turn, run, client)


def _died(turn: Turn, run: TaskRun, client: ClientState, death: Death) -> bool:
    """Count the death of an executor; returns whether the task must be at fault."""
    settings = turn.settings
    times = run.evidence.deaths.setdefault(death.kind, {})
    times[client.client_id] = times.get(client.client_id, 0) + 1
    alone = {c.client_id for c in askable(turn, run)} <= {client.client_id}
    often = settings.deaths_of_one if alone or death.from_outside else 1
    witnesses = {client_id for client_id, count in times.items() if count >= often}
    return bool(witnesses) and convinces(turn, run, witnesses, settings.death_clients)


def _code_failed(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> bool:
    """Count a failure that is reported to happen everywhere; returns whether it does."""
    run.evidence.code[client.client_id] = event.message
    return convinces(turn, run, run.evidence.code, turn.settings.code_failure_clients)


def _forgive(turn: Turn, run: TaskRun) -> None:
    """The machines are not at fault for what this task did to them."""
    for client in turn.farm.clients.values():
        client.breaker.forgive(run.task_id)
