"""What breaks in one task's rules ends that task's attempt, and nothing else.

Each task is served in a part of the turn of its own. If a rule raises there, that part is thrown away whole: the task
goes back to what the last turn left, as after a restart of the server; its open round is abandoned, its clients are
told to stop, and it fails, to be tried again as after any failure of the server. All other tasks go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Concatenate, ParamSpec

from coordinator.commands import DropUpdate, Fold, ReleaseTask, ReportDefect
from coordinator.durability import roll_back
from coordinator.events import AssignmentFailed, ResultArrived
from coordinator.evidence import Evidence
from coordinator.in_flight import Lease, Stage
from coordinator.lifecycle import ACTIVE, HELD, AssignmentState, move_assignment
from coordinator.narrowing import Suspects
from coordinator.offers import settle_uncounted
from coordinator.records import RoundState
from coordinator.state import TaskRun
from coordinator.stopping import evaluation_is_due
from coordinator.tasks import end_attempt
from coordinator.turn import Turn
from protocol.assignments import Ack, Cancel
from protocol.messages import Pause
from protocol.tasks import BlobRef

P = ParamSpec("P")


def contained(
    turn: Turn, run: TaskRun, rule: Callable[Concatenate[Turn, P], None], *args: P.args, **kwargs: P.kwargs
) -> bool:
    """Apply a rule to one task; return whether it held. If it raises, nothing of it remains and the task fails."""
    turn.touched[run.task_id] = run
    part = turn.apart()
    try:
        rule(part, *args, **kwargs)
        part.settle(run)
    except Exception as error:
        _quarantine(turn, run, part, error)
        return False
    turn.take_in(part)
    return True


def describe(turn: Turn, error: Exception) -> str:
    """Return in a line what broke."""
    return f"the server has a defect: {type(error).__name__}: {error} (at {turn.cause}); see its log"


def _quarantine(turn: Turn, run: TaskRun, broken: Turn, error: Exception) -> None:
    why = describe(turn, error)
    part = turn.apart()
    try:
        _give_up(part, run, broken, why)
        part.settle(run)
    except Exception as second:
        # nothing can be done for it before the next start of the server; the others must go on all the same
        turn.do(ReportDefect(run.task_id, f"{describe(turn, second)}; its task stands until a restart", second))
        turn.farm.drop(run.task_id)
    else:
        turn.take_in(part)
    turn.do(ReportDefect(run.task_id, why, error))


def _give_up(turn: Turn, run: TaskRun, broken: Turn, why: str) -> None:
    answered, stake = run.answered, broken.stake
    in_flight = turn.farm.leases.undo(run.task_id, turn.now)
    unsettled = _unsettled_updates(run, in_flight, broken)
    _forget_the_attempt(run)
    turn.farm.sort_in(run)
    turn.farm.reserve(run, ())
    for update in unsettled:
        turn.do(DropUpdate(update))
    if answered.round is not None:
        turn.save(replace(answered.round, state=RoundState.ABANDONED))
    for lease in in_flight:
        _settle(turn, lease, stake, why)
    if stake is not None and all(lease.assignment_id != stake.assignment_id for lease in in_flight):
        settle_uncounted(turn, stake, why)
    roll_back(turn, run, why)
    run.evaluate_next = not run.checkpoint.metrics and evaluation_is_due(run.record)
    for client_id in sorted(run.participants):
        turn.send_to(client_id, Pause(task_id=run.task_id, reason=why))
    turn.do(ReleaseTask(run.task_id))
    if run.record.state in ACTIVE:
        end_attempt(turn, run, why, retryable=True)


def _unsettled_updates(run: TaskRun, in_flight: Iterable[Lease], broken: Turn) -> list[BlobRef]:
    """Return the updates that nobody will fold any more, each once."""
    updates = [lease.update for lease in in_flight if lease.update is not None]
    updates += [delta.blob for delta in run.deltas]
    updates += [command.update for command in broken.drafts() if isinstance(command, Fold | DropUpdate)]
    if isinstance(broken.stake, ResultArrived) and broken.stake.update is not None:
        updates.append(broken.stake.update)
    return list({id(update): update for update in updates}.values())


def _forget_the_attempt(run: TaskRun) -> None:
    """Go back to what the last turn left, without the round that was open."""
    answered = run.answered
    run.record, run.checkpoint, run.volatile = answered.record, answered.checkpoint, answered.volatile
    run.step = None
    run.deltas.clear()
    run.evidence, run.suspects = Evidence(), Suspects()


def _settle(turn: Turn, lease: Lease, stake: ResultArrived | AssignmentFailed | None, why: str) -> None:
    """Nothing of an assignment counts; its client gets an answer, if it is connected."""
    record = lease.saved or lease.record
    if record.state in HELD:
        state = move_assignment(record.assignment_id, record.state, AssignmentState.EXPIRED)
        turn.save(replace(record, state=state, error=why))
    client = turn.farm.clients.get(record.client_id)
    if client is None:
        return
    is_done = lease.stage in (Stage.DELIVERED, Stage.COMMITTED) or (
        stake is not None and stake.assignment_id == record.assignment_id
    )
    if is_done or client.incarnation != record.incarnation:
        turn.send(client, Ack(assignment_id=record.assignment_id, fence=record.fence, counted=False, message=why))
    else:
        turn.send(client, Cancel(assignment_id=record.assignment_id, fence=record.fence, reason=why))
