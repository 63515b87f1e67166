"""One pass over the tasks that wait: who gets which of the free clients now.

What a task is given is a pure decision (``verdict``), which is also what people are told when they ask; acting on it is
``_serve``. After most events only the tasks that the event concerns are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coordinator.containment import contained
from coordinator.eligibility import available
from coordinator.epoch_ends import open_epoch_end
from coordinator.evaluation import open_evaluation
from coordinator.handing_out import hand_out, wants_more
from coordinator.lifecycle import LIVE
from coordinator.maps import offer_items, open_map
from coordinator.offers import offer
from coordinator.pipelining import offer_ahead, wants_ahead
from coordinator.planning import samples_at_hand
from coordinator.pools import Pool
from coordinator.prefetch import held_shards
from coordinator.queue import queue_order
from coordinator.rounds import open_round
from coordinator.state import ClientState, Step, TaskRun
from coordinator.tasks import back_to_waiting, complete
from coordinator.turn import Turn
from coordinator.verdict import MANY_CLIENTS, Outcome, Outlook, needed_clients, verdict
from protocol.assignments import Kind


def schedule(turn: Turn, everything: bool) -> None:
    """Give free clients to the tasks that wait, in queue order. Each task is served in its own guard.

    Unless ``everything`` is to be looked at, only tasks that this turn is about, or that a client could work on about
    which something changed.
    """
    pools = turn.farm.pools.refresh(turn.now)
    runs = list(turn.farm.live.values()) if everything else _concerned(turn, pools)
    if not runs:
        return
    live = len(turn.farm.live)
    _serve_all(turn, runs, everything)
    if len(turn.farm.live) < live and not everything:  # what they kept is free
        _serve_all(turn, list(turn.farm.live.values()), thorough=True)
    turn.farm.pools.refresh(turn.now)


def _concerned(turn: Turn, pools: Iterable[Pool]) -> list[TaskRun]:
    runs = {task_id: run for task_id, run in turn.touched.items() if run.record.state in LIVE}
    if len(runs) < len(turn.touched):  # one has ended or rests: what it kept is free
        return list(turn.farm.live.values())
    for pool in pools:
        for run in pool.runs.values():
            if (pool.idle or not run.waits) and turn.now >= run.look_again:
                runs[run.task_id] = run
    return list(runs.values())


def _serve_all(turn: Turn, runs: Sequence[TaskRun], thorough: bool) -> None:
    outlook = Outlook(turn, thorough)
    by_id = {run.task_id: run for run in runs if run.step is None or run.step.parts.waiting or wants_more(run)}
    spent = {task_id: run.spent.read(turn.now) for task_id, run in by_id.items()}
    waiting = [run.record for run in by_id.values()]
    for task in queue_order(waiting, turn.farm.usage, turn.now, turn.settings.ageing_seconds, spent):
        contained(turn, by_id[task.task_id], _serve, by_id[task.task_id], outlook)
    for run in runs:
        if run.step is not None and run.step.policy.works_ahead:
            contained(turn, run, _serve_ahead, run, outlook)


def _serve_ahead(turn: Turn, run: TaskRun, outlook: Outlook) -> None:
    if wants_ahead(run):
        idle = outlook.idle(run, turn.farm.pool(run, turn.now))
        offer_ahead(turn, run, [client for client in idle if not outlook.is_wanted(client, run)])


def _serve(turn: Turn, run: TaskRun, outlook: Outlook) -> None:
    found = verdict(turn, run, outlook)
    if found.reserved is not None:
        turn.farm.reserve(run, tuple(client.client_id for client in found.reserved))
    match found.outcome:
        case Outcome.DONE:
            complete(turn, run)
        case Outcome.NOBODY:
            if not run.waits:
                deserted = not turn.farm.pool(run, turn.now).qualified
                back_to_waiting(turn, run, lambda: f"no client is left: {found.reason()}", deserted=deserted)
        case Outcome.OFFER if run.step is not None:
            if run.step.policy.brings_outputs:
                offer_items(turn, run, run.step, found.clients)
                return
            left = _offer_again(turn, run, run.step, found.clients)
            if wants_more(run):
                hand_out(turn, run, run.step, [client for client in left if not outlook.yields(client, run)])
        case Outcome.OPEN:
            _open(turn, run, found.clients)
        case _:
            _look_again_later(turn, run)


def _open(turn: Turn, run: TaskRun, clients: Sequence[ClientState]) -> None:
    """Open the task's next step: a look at its version, as far as one is due, before the round that trains on it."""
    match run.next_kind:
        case Kind.EVALUATE:
            open_evaluation(turn, run, clients)
        case Kind.EPOCH_END:
            open_epoch_end(turn, run, clients)
        case Kind.MAP:
            open_map(turn, run, clients)
        case Kind.TRAIN:
            open_round(turn, run, clients)


def _look_again_later(turn: Turn, run: TaskRun) -> None:
    """Where many free clients are of no use for now, it costs something to find that out: not for each event."""
    many = len(turn.farm.pool(run, turn.now).idle)
    in_vain = many > MANY_CLIENTS and many >= needed_clients(run)
    run.look_again = turn.now + many / 1000 if in_vain else 0.0


def _offer_again(turn: Turn, run: TaskRun, step: Step, idle: Sequence[ClientState]) -> list[ClientState]:
    """Offer the parts that wait, each to one of these clients; return who got none."""
    free = list(idle)
    for part in list(step.parts.waiting) if free else []:
        if part.reserved_until > turn.now:
            continue
        slow = {(r.client_id, r.incarnation) for r in step.parts.dormant_records(part.position)}
        able = [c for c in free if (c.client_id, c.incarnation) not in slow]  # not its own once more
        if step.secure is not None:  # a client has one set of keys in a round
            able = [c for c in able if c.client_id not in {r.client_id for r in step.parts.records}]
        if able:
            client = max(able, key=lambda c: samples_at_hand(part.ranges, held_shards(run, c)))
            free.remove(client)
            offer(turn, run, client, part)
        if not free:
            break
    return free


def free_for(turn: Turn, run: TaskRun) -> set[str]:
    """Return the ids of the clients that could do a part of this task at once."""
    idle = turn.farm.pool(run, turn.now).idle.values()
    return {client.client_id for client in idle if available(client, run, turn.now).value}
