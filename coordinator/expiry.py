"""What a tick ends: leases and steps whose time is up.

Time in which the server itself stood still (suspended, stopped, swapping) is nobody's delay.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from coordinator.containment import contained
from coordinator.follows import Follows
from coordinator.handing_out import follows_now, wants_more
from coordinator.in_flight import Lease
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.offers import give_up, overdue, suspend, trip
from coordinator.scheduling import free_for
from coordinator.secure_steps import look
from coordinator.state import Step, StepPhase, TaskRun
from coordinator.step_ends import go_on
from coordinator.stragglers import end_of, gets_on, usual_seconds
from coordinator.turn import Turn


def forgive(turn: Turn, seconds: float) -> None:
    """Move every deadline on by so long: what clients sent meanwhile may still wait to be read."""
    for run in list(turn.farm.live.values()):
        if run.step is not None or run.leases.any_held:
            contained(turn, run, _forgive_in, run, seconds)


def _forgive_in(turn: Turn, run: TaskRun, seconds: float) -> None:
    for lease in run.leases.held():
        lease.deadline += seconds
        lease.began_at += seconds
        lease.computing_at += seconds
        lease.uploading_at += seconds
        lease.grown_at += seconds
        lease.record = replace(lease.record, expires_at=lease.record.expires_at + seconds)
    if (step := run.step) is not None:
        step.collect_since = min(step.collect_since + seconds, turn.now)
        if step.secure is not None:
            step.secure.forgive(seconds, turn.now)
        turn.farm.leases.postpone(step.parts, seconds)


def expire(turn: Turn) -> None:
    """End the leases and steps whose time is up."""
    for run in list(turn.farm.live.values()):
        if run.step is not None or run.leases.any_held:
            contained(turn, run, _expire_in, run)


def _expire_in(turn: Turn, run: TaskRun) -> None:
    for lease in list(run.leases.held()):
        if why := overdue(turn, lease):
            _expire_lease(turn, run, lease, why)
    step = run.step
    if step is not None and step.secure is not None:
        look(turn, run, step, step.secure)
        if run.step is not step:
            return
    if step is None or step.phase is not StepPhase.COLLECT:
        return
    if step.policy.hands_out and (follows := follows_now(turn, run, step)) is not None:
        go_on(turn, run, step, follows)
        return
    if step.secure is None:  # nobody else could do a part whose masks are agreed on
        _double_stragglers(turn, run, step)
    waited = turn.now - step.collect_since if run.record.state is not TaskState.PENDING else 0.0
    if waited > run.record.spec.recipe.longest_round_seconds:
        _expire_step(turn, run, step, waited)


def _double_stragglers(turn: Turn, run: TaskRun, step: Step) -> None:
    """Let free clients begin parts whose leases are past their end, one each."""
    longest = run.record.spec.recipe.longest_round_seconds
    usual = usual_seconds(step)
    slow = [x for x in _waited_for(run, step) if turn.now > end_of(x, usual, turn.now, longest, turn.settings)]
    if not slow or step.parts.waiting:
        return
    free = free_for(turn, run)
    for lease in slow:
        if others := free - {lease.record.client_id}:
            free.discard(min(others))
            took = turn.now - lease.began_at
            suspend(turn, run, lease, f"took over {took:.0f} s: somebody else begins its part as well")


def _waited_for(run: TaskRun, step: Step) -> list[Lease]:
    """Return what the step can't end without. A round that hands out waits for nobody before the epoch's end."""
    if not step.policy.hands_out:
        return list(step.parts.held.values())
    return [] if wants_more(run) else [*step.parts.held.values(), *run.late.held.values()]


def _expire_lease(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    client = give_up(turn, run, lease, AssignmentState.EXPIRED, why)
    is_missed = not lease.is_late or run.policy(lease.record.kind).hands_out
    if is_missed and client.paused is None:  # else nobody waited for it, or its owner's pause held it up
        client.back_off(run.task_id, why, turn.settings.client_retry, turn.now)
        trip(turn, run, client)


def _gets_on(turn: Turn, run: TaskRun, step: Step, waited: float) -> bool:
    """Whether somebody gets on steadily with a part, or only just began with one that somebody else held up."""
    late = run.late.held.values() if step.policy.hands_out else ()
    if any(gets_on(lease, turn.now, turn.settings) for lease in (*step.parts.held.values(), *late)):
        return True
    longest = run.record.spec.recipe.longest_round_seconds
    newer = [x.began_at for x in step.parts.held.values() if x.began_at >= step.collect_since + longest / 2]
    dormant = [lease.record for lease in step.parts.dormant.values()]
    doubled = any(turn.farm.clients[r.client_id].incarnation == r.incarnation for r in dormant)
    return waited <= 2 * longest and (doubled or turn.now - max(newer, default=-inf) <= turn.settings.stall_seconds)


def _expire_step(turn: Turn, run: TaskRun, step: Step, waited: float) -> None:
    longest = run.record.spec.recipe.longest_round_seconds
    follows = step.policy.at_longest_time(step.parts)
    if follows is Follows.COMMIT or not _gets_on(turn, run, step, waited):
        title, share = step.policy.title(step.number), step.parts.own_samples / max(step.samples, 1)
        go_on(turn, run, step, follows, f"{title} had {share:.0%} of its samples after {longest:.0f} s")
