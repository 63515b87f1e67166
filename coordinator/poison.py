"""An item of a map that ends executors: it is found by narrowing, kept as failed, and the map goes on without it."""

from __future__ import annotations

from itertools import islice
from typing import Final

from coordinator.in_flight import Part, StepParts
from coordinator.maps import count_items, part_between
from coordinator.narrowing import Suspects, is_at_fault, is_hopeless, is_one_batch
from coordinator.offers import dismiss
from coordinator.records import AssignmentRecord, FailedItemRecord
from coordinator.state import ClientState, Step, TaskRun
from coordinator.tasks import fail
from coordinator.turn import Turn
from coordinator.witnesses import judges
from protocol.maps import MapPlan, OnError

_MOST_NAMED: Final = 5


def narrow_down(turn: Turn, run: TaskRun, client: ClientState, record: AssignmentRecord, why: str) -> None:
    """A client's executor ended on a part, which waits again: cut it, or find that its one item is at fault.

    A batch is cut only once it is at fault itself, for what an item gives may depend on its batch; a map that stops
    at errors fails by that item. Nothing follows where another client works on the part: it will tell.
    """
    start, stop, step = record.position, record.position + record.samples, run.step
    if step is None or not _waits(step.parts, record):
        return
    for lease in list(step.parts.dormant_at.get(start, {}).values()):  # who comes back with all of it comes too late
        dismiss(turn, lease, "its part is given out in pieces")
    plan = run.record.spec.map or MapPlan()
    if is_one_batch(start, stop, plan.batch_items):
        deaths, able = run.suspects.deaths.setdefault((start, stop), {}), judges(turn, run)
        deaths[client.client_id] = deaths.get(client.client_id, 0) + (client.client_id in able)
        if not is_at_fault(deaths, able):
            return
        if record.samples == 1:
            _give_up_item(turn, run, step, start, why)
            return
    pieces = run.suspects.narrow(start, stop, plan.batch_items)
    turn.farm.leases.divide(step.parts, start, _parts(run, pieces))
    turn.note("part_narrowed", f"items {start} to {stop - 1} are given out in {len(pieces)} pieces: {why}", run, client)


def _waits(parts: StepParts, record: AssignmentRecord) -> bool:
    index = parts.find_waiting(record.position)
    return index is not None and parts.waiting[index].samples == record.samples


def _parts(run: TaskRun, pieces: list[tuple[int, int]]) -> list[Part]:
    return [part_between(run.record.spec.dataset, start, stop) for start, stop in pieces]


def _give_up_item(turn: Turn, run: TaskRun, step: Step, item: int, why: str) -> None:
    """An item is at fault: the machines are not, for what it did to them."""
    ended = run.suspects.deaths.pop((item, item + 1))
    for client in turn.farm.clients.values():
        client.breaker.forgive(run.task_id)
    names = tuple(turn.farm.clients[one].record.name for one in islice(ended, _MOST_NAMED) if one in turn.farm.clients)
    if (run.record.spec.map or MapPlan()).on_error is OnError.STOP:
        run.suspects = Suspects()
        fail(turn, run, f"item {item} ends its executor: {why} (on {', '.join(names)})", retryable=False)
        return
    turn.farm.leases.divide(step.parts, item, ())
    turn.save(FailedItemRecord(run.task_id, item, why, names))
    turn.note("item_failed", f"item {item} has no output: {why} (on {', '.join(names)})", run)
    count_items(turn, run, step, 1, 1)
    run.suspects.items_found += 1
    if is_hopeless(run.suspects.items_found, run.record.samples_done - run.suspects.items_found):
        run.suspects = Suspects()
        fail(turn, run, f"the task's code ends its executor on one item after another: {why}", retryable=False)
