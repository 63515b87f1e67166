"""Assignments that come to nothing: handed back, or gone wrong, and whose fault that is."""

from __future__ import annotations

from dataclasses import replace

from coordinator.ahead import drop_ahead
from coordinator.eligibility import qualifies
from coordinator.events import AssignmentFailed, AssignmentRejected
from coordinator.holdings import find_ahead, find_held, find_late, settle_uncounted
from coordinator.lateness import drop_late
from coordinator.lifecycle import AssignmentState
from coordinator.offers import lose, trip
from coordinator.state import ClientState, Cooldown, TaskRun
from coordinator.tasks import fail
from coordinator.turn import Turn
from protocol.messages import RejectCode, Scope


def rejected(turn: Turn, event: AssignmentRejected) -> None:
    """A client hands an assignment back undone; it is not asked again at once."""
    if late := find_late(turn, event):
        drop_late(turn, *late, event.message, AssignmentState.REJECTED)
        return
    why, to = f"{event.code.replace('_', ' ')}: {event.message}", AssignmentState.REJECTED
    if ahead := find_ahead(turn, event):
        run, lease = ahead
        client = drop_ahead(turn, run, lease, why, to)
    elif held := find_held(turn, event):
        run, lease = held
        client = lose(turn, run, lease, to, why)
    else:
        return
    if event.code is RejectCode.DOES_NOT_FIT:
        wait = turn.settings.does_not_fit_seconds
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"it does not fit: {event.message}")
    elif event.code is RejectCode.DRAINING:
        client.draining = True
    else:
        wait = turn.settings.client_retry.longest_seconds(1)
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"{event.code}: {event.message}")


def failed(turn: Turn, event: AssignmentFailed) -> None:
    """An assignment went wrong: somebody else gets it, unless the researcher's code is at fault everywhere.

    It may be the server that found so: then the client keeps the result until it hears that nobody wants it.
    """
    turn.put_at_stake(event)
    settle_uncounted(turn, event, f"not counted: {event.message}")
    if late := find_late(turn, event):
        drop_late(turn, *late, event.message, AssignmentState.FAILED)
        return
    why, to = f"{event.code}: {event.message}", AssignmentState.FAILED
    if ahead := find_ahead(turn, event):
        run, lease = ahead
        client = drop_ahead(turn, run, lease, why, to)
    elif held := find_held(turn, event):
        run, lease = held
        client = lose(turn, run, lease, to, why)
    else:
        return
    turn.log(run, client, event.traceback or event.message)
    client.record = replace(client.record, failed=client.record.failed + 1)
    turn.save(client.record)
    run.failures += 1
    if event.scope is Scope.NOBODY:
        _code_failed(turn, run, client, event)
        return
    client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)
    trip(turn, client)
    if run.failures >= turn.settings.round_failures:
        fail(turn, run, f"{run.failures} assignments failed, the last one: {event.message}", retryable=True)


def _code_failed(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    run.code_failures[client.client_id] = event.message
    askable = sum(1 for c in turn.farm.online() if not c.draining and qualifies(c.record, run.record.spec).value)
    enough = len(run.code_failures) >= min(turn.settings.code_failure_clients, max(askable, 1))
    if enough or run.failures >= turn.settings.round_failures:
        where = "a client" if len(run.code_failures) == 1 else f"{len(run.code_failures)} clients"
        fail(turn, run, f"the task's code failed on {where}: {event.message}", retryable=False)
        return
    client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)
