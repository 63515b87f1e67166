"""Clients come, go, pause and leave."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from coordinator.ahead import drop_ahead
from coordinator.breaker import Breaker
from coordinator.commands import DropClient
from coordinator.containment import contained
from coordinator.events import (
    ClientConnected,
    ClientDraining,
    ClientLost,
    ClientPaused,
    ClientReady,
    ClientRemoved,
    ClientThrottled,
    IdentityShared,
)
from coordinator.lateness import drop_late
from coordinator.lifecycle import AssignmentState
from coordinator.offers import accept, adopt, forget, suspend
from coordinator.records import ClientRecord, RemovedClient
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.errors import Conflict, NotFound
from protocol.messages import Cancel, HeldAssignment, Hello


def connected(turn: Turn, event: ClientConnected) -> None:
    """A client joined, or came back under a new incarnation; what its former self held is lost."""
    hello = event.hello
    known = turn.farm.clients.get(hello.client_id)
    first_seen = known.record.first_seen if known else turn.now
    record = ClientRecord(
        client_id=hello.client_id,
        name=hello.name or hello.resources.hostname or hello.client_id[:8],
        secret_hash=event.secret_hash,
        first_seen=first_seen,
        last_seen=turn.now,
        incarnation=event.incarnation,
        resources=hello.resources,
        tags=hello.tags,
        delivered=known.record.delivered if known else 0,
        failed=known.record.failed if known else 0,
    )
    client = ClientState(
        record=record,
        online=True,
        load=hello.load,
        connected_at=turn.now,
        last_beat=turn.now,
        freed_at=turn.now,
        speeds=known.speeds if known else {},
        cached=set(hello.cached),
        codecs=frozenset(hello.codecs),
        features=frozenset(hello.features),
        failures=known.failures if known else {},
        cooldowns=known.cooldowns if known else {},
        breaker=known.breaker if known else Breaker(),
        serves=known.serves if known else set(),
    )
    if known is not None:
        _suspend_all(turn, known, "its connection was replaced")
    turn.farm.admit(client)
    turn.save(record)
    turn.note("client_joined", f"{record.name} joined", client=client)
    _take_up(turn, client, hello, sorted(known.dormant) if known else ())


def lost(turn: Turn, event: ClientLost) -> None:
    """A connection ended; its assignments go to others."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return
    _leave(turn, client, event.reason)
    client.record = replace(client.record, last_seen=turn.now)
    turn.save(client.record)
    turn.note("client_lost", f"{client.record.name}: {event.reason}", client=client)


def _leave(turn: Turn, client: ClientState, reason: str) -> None:
    """The client is not there any more: what it holds goes to others."""
    client.online = False
    client.slots = 0
    client.offline_reason = reason
    _suspend_all(turn, client, f"the client is gone: {reason}")
    for task_id in client.serves:
        if (run := turn.farm.tasks.get(task_id)) is not None:
            run.participants.discard(client.client_id)
    client.serves.clear()


def check_removal(turn: Turn, event: ClientRemoved) -> None:
    """Refuse to forget who is connected, before anything changes. Raises: NotFound, Conflict."""
    client = turn.farm.clients.get(event.client_id)
    if client is None:
        raise NotFound(f"there is no client {event.client_id}; `farm clients` lists the clients")
    if client.online and not event.force:
        raise Conflict(
            f"client {client.record.name} ({client.client_id}) is connected: stop its agent first, "
            "or give --force to close its connection"
        )


def remove(turn: Turn, event: ClientRemoved) -> None:
    """Forget a client. What it delivered counts as before; nobody waits for what it held."""
    client = turn.farm.clients[event.client_id]
    if client.online:
        _leave(turn, client, "it was removed")
    for run in list(turn.farm.live.values()):
        if run.step and any(record.client_id == client.client_id for record in run.step.dormant.values()):
            contained(turn, run, _forget_the_untold, run, client, ())
    turn.farm.dismiss(client)
    turn.save(RemovedClient(client.client_id))
    turn.note("client_removed", f"{client.record.name} ({client.client_id}) was removed", client=client)
    turn.do(DropClient(client.client_id, client.incarnation, "it was removed from the farm; it may join anew"))


def identity_shared(turn: Turn, event: IdentityShared) -> None:
    """Two machines use this client's identity: that is for people to see and to mend."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        turn.note("identity_shared", f"{client.record.name}: {event.reason}", client=client)


def _runs_of(turn: Turn, client: ClientState) -> list[TaskRun]:
    """Return the tasks that the client works on."""
    homes = (turn.farm.home(assignment_id) for assignment_id in sorted(client.held))
    return list({run.task_id: run for run in homes if run is not None}.values())


def _suspend_all(turn: Turn, client: ClientState, why: str) -> None:
    for run in _runs_of(turn, client):
        contained(turn, run, _suspend, run, client, why)


def _suspend(turn: Turn, run: TaskRun, client: ClientState, why: str) -> None:
    for lease in list(run.late.values()):
        if lease.record.client_id == client.client_id:
            drop_late(turn, run, lease, why)
    for lease in list(run.ahead.values()):
        if lease.record.client_id == client.client_id:
            drop_ahead(turn, run, lease, why)
    for lease in list(run.step.leases.values()) if run.step else ():
        if lease.record.client_id == client.client_id:
            suspend(turn, run, lease, why)


def _take_up(turn: Turn, client: ClientState, hello: Hello, left: Iterable[str]) -> None:
    """Let the client go on with what it still holds, and forget what it does not."""
    told = {held.assignment_id for held in hello.held}
    for task_id in left:
        if (run := turn.farm.live.get(task_id)) is not None:
            contained(turn, run, _forget_the_untold, run, client, told)
    for held in hello.held:
        if not held.finished:  # a finished one is counted, or not, when its result comes
            run_of_it = turn.farm.home(held.assignment_id)
            if run_of_it is None or not contained(turn, run_of_it, _go_on_or_stop, client, held):
                _stop(turn, client, held)


def _forget_the_untold(turn: Turn, run: TaskRun, client: ClientState, told: Collection[str]) -> None:
    for record in list(run.step.dormant.values()) if run.step else ():
        if record.client_id == client.client_id and record.assignment_id not in told:
            forget(turn, run, record)


def _go_on_or_stop(turn: Turn, client: ClientState, held: HeldAssignment) -> None:
    found = turn.farm.dormant(held.assignment_id, held.fence)
    if found is not None:
        run, step, record = found
        if record.client_id == client.client_id and any(p.position == record.position for p in step.waiting):
            accept(turn, run, adopt(turn, run, record, client))
            return
    _stop(turn, client, held)


def _stop(turn: Turn, client: ClientState, held: HeldAssignment) -> None:
    why = "somebody else has it, or its round is over"
    turn.send(client, Cancel(assignment_id=held.assignment_id, fence=held.fence, reason=why))


def ready(turn: Turn, event: ClientReady) -> None:
    """The client tells how many more assignments it can take; it had not seen yet what it has not answered."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.slots = max(event.slots - _unanswered(turn, client), 0)
        client.warms_up = event.slots == 0 and not client.held


def _unanswered(turn: Turn, client: ClientState) -> int:
    runs = _runs_of(turn, client)
    books = [book for run in runs for book in (run.late, run.ahead, run.step.leases if run.step else {})]
    leases = (book.get(assignment_id) for assignment_id in client.held for book in books)
    return sum(1 for lease in leases if lease and lease.record.state is AssignmentState.OFFERED)


def paused(turn: Turn, event: ClientPaused) -> None:
    """The owner paused the machine, or gave it back to the farm."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.paused = event.reason if event.paused else None


def throttled(turn: Turn, event: ClientThrottled) -> None:
    """The client floods the server, and gets no work meanwhile; or it stopped."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.throttled = event.throttled


def draining(turn: Turn, event: ClientDraining) -> None:
    """The client finishes what it holds and wants nothing more."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.draining = True
        turn.note("client_draining", f"{client.record.name}: {event.reason or 'leaving'}", client=client)
