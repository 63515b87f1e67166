"""One pass over the waiting tasks: who gets which of the free clients now, and what the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from coordinator.ahead import drop_ahead, offer_ahead, wants_ahead
from coordinator.containment import contained
from coordinator.decision import Decision
from coordinator.eligibility import eligible, qualifies
from coordinator.evaluation import give_up_evaluation, open_evaluation
from coordinator.horizon import is_finished
from coordinator.lateness import drop_late
from coordinator.lifecycle import TaskState
from coordinator.offers import cancel, offer, overdue, suspend, trip
from coordinator.planning import samples_at_hand
from coordinator.prefetch import held_shards
from coordinator.queue import band, fair_share, queue_order
from coordinator.rounds import abandon, commit, open_round
from coordinator.scoring import rank
from coordinator.state import ClientState, Lease, Step, StepPhase, TaskRun
from coordinator.stragglers import end_of, gets_on
from coordinator.tasks import back_to_waiting, complete, fail
from coordinator.turn import Turn
from protocol.messages import Kind

LIVE = frozenset({TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING})


def schedule(turn: Turn) -> None:
    """Give free clients to the tasks that wait, in queue order. Each task is served in its own guard."""
    live = {t: run for t, run in turn.farm.tasks.items() if run.record.state in LIVE}
    waiting = [run.record for run in live.values() if _wants_clients(run)]
    for task in queue_order(waiting, turn.farm.usage, turn.now, turn.settings.ageing_seconds):
        run = live[task.task_id]
        contained(turn, run, _serve, run, waiting_peers(turn, run, list(live.values())))
    for run in live.values():
        if run.record.spec.recipe.pipeline and not any(_waits_to_open(turn, other) for other in live.values()):
            contained(turn, run, _serve_ahead, run)


def _serve_ahead(turn: Turn, run: TaskRun) -> None:
    if wants_ahead(run):
        offer_ahead(turn, run, [c for c in turn.farm.online() if c.slots > 0 and eligible(c, run, turn.now).value])


def _waits_to_open(turn: Turn, run: TaskRun) -> bool:
    """Whether a task has no step and would take free clients: nobody may keep them for a round to come then."""
    return run.record.state in LIVE and run.step is None and run.record.not_before <= turn.now


def _wants_clients(run: TaskRun) -> bool:
    return run.step is None or bool(run.step.waiting)


def waiting_peers(turn: Turn, run: TaskRun, runs: Sequence[TaskRun]) -> int:
    """Count the tasks of this one's band that wait to open a step, itself included."""
    own = band(run.record, turn.now, turn.settings.ageing_seconds)
    return sum(1 for r in runs if r.step is None and band(r.record, turn.now, turn.settings.ageing_seconds) == own)


def _serve(turn: Turn, run: TaskRun, peers: int) -> None:
    if run.step is None and is_finished(run.record) and not run.evaluate_next:
        complete(turn, run)
        return
    candidates = [c for c in turn.farm.online() if eligible(c, run, turn.now).value]
    works = bool(run.step.leases if run.step else run.ahead_records())  # a round may open with what was done ahead
    if not candidates and not works:
        run.why = nobody(turn, run)
        deserted = not any(qualifies(c.record, run.record.spec).value for c in turn.farm.online())
        back_to_waiting(turn, run, f"no client is left: {run.why}", deserted=deserted)
        return
    if run.record.state is TaskState.PENDING and run.record.not_before > turn.now:
        run.why = f"begins again in {run.record.not_before - turn.now:.0f} s ({run.record.reason})"
        return
    idle = [c for c in candidates if c.slots > 0]
    if run.step is not None:
        _offer_again(turn, run, run.step, idle)
        return
    choice = choose(turn, run, candidates, idle, peers)
    run.why = choice.reason
    if choice.value or not choice.reason:
        (open_evaluation if run.evaluate_next else open_round)(turn, run, choice.value)


def _offer_again(turn: Turn, run: TaskRun, step: Step, idle: Sequence[ClientState]) -> None:
    open_parts = [part for part in step.waiting if part.reserved_until <= turn.now]
    free = list(idle)
    slow = {(r.position, r.client_id, r.incarnation) for r in step.dormant.values()}
    for part in open_parts:
        able = [c for c in free if (part.position, c.client_id, c.incarnation) not in slow]  # not its own once more
        if able:
            client = max(able, key=lambda c: samples_at_hand(part.ranges, held_shards(run, c)))
            free.remove(client)
            step.waiting.remove(part)
            offer(turn, run, client, part)


def choose(
    turn: Turn, run: TaskRun, candidates: Sequence[ClientState], idle: Sequence[ClientState], peers: int
) -> Decision[Sequence[ClientState]]:
    """Choose the clients for the task's next step: nobody, with the reason, or at least as many as it needs."""
    recipe, task = run.record.spec.recipe, run.record
    needed = recipe.min_clients - len({record.client_id for record in run.ahead_records()})
    if task.version == 0 and recipe.init_min_clients is not None:
        needed = recipe.init_min_clients
    if run.evaluate_next:
        needed = 1
    if len(idle) < needed:
        busy = len(candidates) - len(idle)
        return Decision((), f"waits for {needed} free clients: {len(idle)} are free, {busy} are busy")
    coming = [c for c in candidates if c.slots == 0 and not c.held and _is_worth_waiting(turn, run, c, len(idle))]
    if coming:
        return Decision((), f"waits a moment for {', '.join(c.record.name for c in coming)} to be ready")
    limit = fair_share(len(idle), peers, max(needed, 0))
    if recipe.max_clients is not None:
        limit = min(limit, max(recipe.max_clients, needed))
    if limit >= len(idle):
        return Decision(idle)
    return Decision([client for _, client, _ in rank(run, idle)[:limit]])


def _is_worth_waiting(turn: Turn, run: TaskRun, client: ClientState, idle: int) -> bool:
    """Whether a step should wait a moment for a client that has no free slot yet.

    One that warms up takes seconds, and its help makes a round of T seconds on k clients shorter by T / (k + 1): it is
    waited for no longer than that. Nobody knows T before the first round.
    """
    recipe, speed = run.record.spec.recipe, run.speed.value
    if not client.warms_up or not recipe.gather_seconds:
        return turn.now - client.freed_at < recipe.gather_seconds
    saved_seconds = recipe.round_samples / speed / (idle + 1) if speed else inf
    return turn.now - client.connected_at < min(saved_seconds, turn.settings.warm_up_seconds)


def nobody(turn: Turn, run: TaskRun) -> str:
    """Say in a clause why no client can work on the task."""
    online = list(turn.farm.online())
    if not online:
        return "no client is connected; volunteers join with `farm-client join`"
    reasons = [f"{c.record.name} {eligible(c, run, turn.now).reason}" for c in online]
    fit = any(qualifies(c.record, run.record.spec).value for c in online)
    kind = "no client can take it now" if fit else "no client meets its requirements"
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return f"{kind}: {shown}"


def expire(turn: Turn) -> None:
    """End the leases and steps whose time is up."""
    for run in list(turn.farm.tasks.values()):
        if run.step is not None or run.late or run.ahead:
            contained(turn, run, _expire_in, run)


def _expire_in(turn: Turn, run: TaskRun) -> None:
    for lease in list(run.late.values()):
        if why := overdue(turn, lease):
            drop_late(turn, run, lease, why)
    for lease in list(run.ahead.values()):
        if why := overdue(turn, lease):
            _blame(turn, run, drop_ahead(turn, run, lease, why), why)
    step = run.step
    if step is None or step.phase is not StepPhase.COLLECT:
        return
    for lease in list(step.leases.values()):
        if why := overdue(turn, lease):
            _expire_lease(turn, run, lease, why)
    _double_stragglers(turn, run, step)
    waited = turn.now - step.collect_since if run.record.state is not TaskState.PENDING else 0.0
    if waited > run.record.spec.recipe.longest_round_seconds:
        _expire_step(turn, run, step, waited)


def _double_stragglers(turn: Turn, run: TaskRun, step: Step) -> None:
    """Let free clients begin parts whose leases are past their end, one each."""
    longest = run.record.spec.recipe.longest_round_seconds
    slow = [x for x in step.leases.values() if turn.now > end_of(x, step, turn.now, longest, turn.settings)]
    if not slow or step.waiting:
        return
    free = {c.client_id for c in turn.farm.online() if c.slots > 0 and eligible(c, run, turn.now).value}
    for lease in slow:
        if others := free - {lease.record.client_id}:
            free.discard(min(others))
            took = turn.now - lease.began_at
            suspend(turn, run, lease, f"took over {took:.0f} s: somebody else begins its part as well")


def _expire_lease(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    cancel(turn, run, lease, why)
    _blame(turn, run, turn.farm.clients[lease.record.client_id], why)


def _blame(turn: Turn, run: TaskRun, client: ClientState, why: str) -> None:
    client.back_off(run.task_id, why, turn.settings.client_retry, turn.now)
    trip(turn, run, client)


def _needed_samples(run: TaskRun, step: Step) -> int:
    return min(step.samples, run.record.spec.recipe.round_samples)


def _gets_on(turn: Turn, run: TaskRun, step: Step, waited: float) -> bool:
    """Whether somebody gets on steadily with a part, or only just began with one that somebody else held up."""
    if any(gets_on(lease, turn.now, turn.settings) for lease in step.leases.values()):
        return True
    longest = run.record.spec.recipe.longest_round_seconds
    late = [x.began_at for x in step.leases.values() if x.began_at >= step.collect_since + longest / 2]
    doubled = any(turn.farm.clients[r.client_id].incarnation == r.incarnation for r in step.dormant.values())
    return waited <= 2 * longest and (doubled or turn.now - max(late, default=-inf) <= turn.settings.stall_seconds)


def _expire_step(turn: Turn, run: TaskRun, step: Step, waited: float) -> None:
    longest = run.record.spec.recipe.longest_round_seconds
    has_quorum = step.own_samples and step.own_samples >= run.record.spec.recipe.quorum * _needed_samples(run, step)
    if not (has_quorum and step.kind is Kind.TRAIN) and _gets_on(turn, run, step, waited):
        return
    if step.kind is Kind.EVALUATE:
        abandon(turn, run, f"the evaluation took over {longest:.0f} s")
        give_up_evaluation(turn, run, f"it took over {longest:.0f} s")
    elif has_quorum:
        commit(turn, run, step)
    else:
        share = step.own_samples / step.samples
        fail(turn, run, f"round {step.number} had {share:.0%} of its samples after {longest:.0f} s", retryable=True)
