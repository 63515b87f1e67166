"""What holds of the coordinator's memory after each event, and of each command as it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.commands import Command, CommitRound, Fold, OpenRound, Send
from coordinator.farm import FarmState
from coordinator.lifecycle import ENDED, HELD, TaskState
from coordinator.records import RoundState, TaskRecord
from coordinator.state import Step, StepPhase, TaskRun
from protocol.assignments import Assign, Kind
from protocol.codec import decode, encode
from tests.coordinator.book_checks import faults_of_book, faults_of_map, faults_of_round
from tests.simulation.violation import Violation, check

if TYPE_CHECKING:
    from tests.simulation.durable import AuditedLedger
    from tests.simulation.server import Server

_LIVE = frozenset({TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING})


def check_farm(server: Server, is_tick: bool) -> None:
    """Check all that must hold between two events. Raises: Violation."""
    farm: FarmState = server.coordinator._farm  # the simulation looks inside
    faults = faults_of_book(farm.leases, {name: run.leases for name, run in farm.tasks.items()}, farm.clients)
    check(not faults, "; ".join(faults))
    _check_nothing_is_lost(server)
    held: dict[str, set[str]] = {}
    pipelined: set[str] = set()
    """Assignments of tasks whose clients free their slots before they deliver."""
    for run in farm.tasks.values():
        of_version = run.checkpoint.round == run.record.version
        check(of_version, f"task {run.task_id} has version {run.record.version} and checkpoint {run.checkpoint.round}")
        if run.step is not None:
            check(run.record.state in _LIVE, f"task {run.task_id} is {run.record.state} and has an open step")
            _check_step(run, run.step)
            idle = run.record.state is not TaskState.PENDING or not run.step.parts.held
            check(idle, f"task {run.task_id} is pending, and clients work on it")
            for name, lease in run.step.parts.held.items():
                held.setdefault(lease.record.client_id, set()).add(name)
                check(lease.record.state in HELD, f"lease of {name}, which is {lease.record.state}")
        for name, lease in (*run.late.held.items(), *run.ahead.held.items()):
            held.setdefault(lease.record.client_id, set()).add(name)
        ahead = run.ahead.records
        if run.brief.pipeline:
            pipelined |= {lease.assignment_id for lease in run.leases.held()}
        clients_ahead = [record.client_id for record in ahead]
        check(len(clients_ahead) == len(set(clients_ahead)), f"a client is ahead of {run.task_id} twice")
        check(not ahead or run.record.spec.recipe.pipeline, f"task {run.task_id} has parts of a round to come")
        check(run.record.state in _LIVE or not ahead, f"task {run.task_id} is {run.record.state} and has parts ahead")
        if is_tick and run.record.state not in ENDED:
            why = server.coordinator.why(run.task_id, server.world.server_now())
            check(bool(why.strip()), f"task {run.task_id} is {run.record.state} and does not say why")
    for client in farm.clients.values():
        if client.slots < 0 or client.held.keys() != held.get(client.client_id, set()):
            raise Violation(f"{client.client_id} has {client.slots} slots and holds {client.held}, not {held}")
        if client.held:
            check(client.online, f"{client.client_id} is gone and holds {client.held}")
            room = server.world.by_id[client.client_id].slots + server.peers[client.client_id].overtaken
            plain = client.held.keys() - pipelined
            check(len(plain) <= room, f"{client.client_id} has room for {room} and holds {plain}")


def _check_nothing_is_lost(server: Server) -> None:
    """Check that a task is in memory until the ledger has its end."""
    unfinished = {task_id for task_id, task in server.world.ledger.tasks.items() if task.state not in ENDED}
    lost = unfinished - server.coordinator._farm.tasks.keys() - server.given_up
    check(not lost, f"tasks {sorted(lost)} have left the memory before their end is durable")


def check_restored(server: Server) -> None:
    """Check that a start finds in memory what has not ended, as the ledger has it. Raises: Violation."""
    ledger, farm = server.world.ledger, server.coordinator._farm
    check(
        farm.credits == {one.client_id: one for one in ledger.snapshot().credits},
        "clients' credit is another one after a restart",
    )
    unfinished = {task_id: task for task_id, task in ledger.tasks.items() if task.state not in ENDED}
    check(farm.tasks.keys() == unfinished.keys(), f"a start loads {sorted(farm.tasks)} of {sorted(unfinished)}")
    for task_id, task in unfinished.items():
        check(farm.tasks[task_id].record == task, f"task {task_id} is another one after a restart")


def check_evicted(ledger: AuditedLedger, record: TaskRecord) -> None:
    """Check what the ledger has of a task that has just left the memory. Raises: Violation."""
    name = record.task_id
    check(ledger.tasks.get(name) == record, f"task {name} leaves the memory before its end is durable")
    check(record.state in ENDED, f"task {name} is {record.state} and leaves the memory")
    held = [a.assignment_id for a in ledger.assignments.values() if a.task_id == name and a.state in HELD]
    check(not held, f"task {name} leaves the memory, and clients hold {held}")
    is_open = any(r.task_id == name and r.state is RoundState.OPEN for r in ledger.rounds.values())
    check(not is_open, f"task {name} leaves the memory with an open round")


def _check_step(run: TaskRun, step: Step) -> None:
    """Each sample of the step is delivered, leased to one client, or waits: exactly one of the three."""
    book = step.parts
    if step.phase is not StepPhase.COLLECT:
        check(not book.held and not book.waiting, f"round {step.number} is being committed and parts are out")
    else:
        faults = faults_of_map(run, book) if step.policy.brings_outputs else faults_of_round(book)
        check(not faults, f"round {step.number} of {run.task_id}: {'; '.join(faults)}")


def check_command(server: Server, command: Command) -> None:
    """Check a command at the moment it is given. Raises: Violation."""
    audit = server.world.audit
    match command:
        case Send():
            peer = server.peers.get(command.client_id)
            current = peer is not None and peer.incarnation == command.incarnation
            check(current, f"{type(command.message).__name__} goes to a former {command.client_id}")
            if isinstance(command.message, Assign):
                check(command.message.assignment_id not in audit.assigned, "an assignment is sent twice")
                audit.assigned.add(command.message.assignment_id)
                check(decode(encode(command.message)) == command.message, "an assignment is sent that nobody can read")
                here = (command.message.task.task_id, command.client_id, command.incarnation)
                _check_data_part(server, command.message)
                check(here not in audit.refused, f"{here} is asked again, although its owner does not allow it")
        case OpenRound():
            key = (server, command.task_id)
            check(command.checkpoint.round == command.round, "a round opens from another round's checkpoint")
            audit.folds[key] = (command.attempt, -1)
        case Fold():
            _check_fold(server, command)
        case CommitRound():
            check(audit.folds[server, command.task_id][0] == command.attempt, "a round is committed that is not open")


def _check_data_part(server: Server, assign: Assign) -> None:
    """Check that a training part of a split is of one virtual client, which is named where it has a control variate."""
    spec = server.coordinator._farm.tasks[assign.task.task_id].record.spec
    if not spec.dataset.parts or assign.kind is not Kind.TRAIN:
        return
    of = {spec.dataset.part_of_shard[one.shard.index] for one in assign.slices}
    check(len(of) == 1, f"a part is of the virtual clients {sorted(of)}")
    named = of if spec.recipe.scaffold_clients else {None}
    check(assign.data_part in named, f"a part of virtual client {of} is said to be of {assign.data_part}")


def _check_fold(server: Server, command: Fold) -> None:
    audit, key = server.world.audit, (server, command.task_id)
    attempt, last = audit.folds[key]
    run = server.coordinator._farm.tasks[command.task_id]
    check(attempt == command.attempt, f"{command.assignment_id} is folded into a round that is not open")
    if run.step is None:  # a later part of this turn gave the round up
        return
    folded = next(r for r in run.step.parts.delivered_records if r.assignment_id == command.assignment_id)
    position, staleness = folded.position, command.round - folded.round
    recipe = run.record.spec.recipe
    check(staleness <= recipe.max_staleness, f"{command.assignment_id} is folded {staleness} versions late")
    check(position > last, f"{command.assignment_id} is folded at {position}, after {last}")
    audit.folds[key] = (attempt, position)
