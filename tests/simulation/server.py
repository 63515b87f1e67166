"""The server's shell around the real coordinator: what ``farm_server`` does, in simulated time, and checked.

Commands are carried out in order and none before an earlier ``Save`` is durable, as in ``farm_server.control.runtime``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from coordinator.commands import (
    Command,
    CommitRound,
    ConfirmEnd,
    DropRound,
    DropUpdate,
    FlushCheckpoint,
    Fold,
    OpenRound,
    ReleaseTask,
    ReportDefect,
    Save,
    Send,
)
from coordinator.durability import MOST_ROUNDS
from coordinator.engine import Coordinator
from coordinator.events import (
    AssignmentFailed,
    ClientConnected,
    ClientLost,
    ClientReady,
    EndConfirmed,
    Event,
    Restored,
    ResultArrived,
    TaskAction,
    TaskRecalled,
    Tick,
)
from coordinator.lifecycle import ENDED
from coordinator.records import Snapshot, TaskRecord
from farm_server.clients.translate import event_of, failure_of
from protocol.assignments import Ack, Assign, Kind, Reject, RejectCode, Result
from protocol.errors import FarmError
from protocol.messages import Bye, Error, Hello, Message, Ready, Resume, Scope, Welcome
from tests.simulation.aggregator import Aggregator
from tests.simulation.durable import Journal, Ticket
from tests.simulation.invariants import check_command, check_evicted, check_farm, check_restored
from tests.simulation.network import Connection
from tests.simulation.violation import Planted, Violation, check

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_SECONDS = 1.0
LOST_AFTER_SECONDS = 8.0


class Server:
    """One life of the server: from a start on what was durable to the crash that ends it."""

    def __init__(self, world: World, snapshot: Snapshot) -> None:
        self.world = world
        self.coordinator = Coordinator(snapshot, world.scenario.settings, world.new_id, world.rng.random)
        self.peers: dict[str, Connection] = {}
        self.crashed = False
        self.given_up: set[str] = set()
        """Tasks that stand until a restart, because not even giving them up succeeded."""
        self._incarnations = {c.client_id: c.incarnation for c in snapshot.clients}
        self._queue: deque[Command | Ticket] = deque()
        self._advancing = False
        self._journal = Journal(world, self._advance)
        self._aggregator = Aggregator(world, self.post)
        self._restored = bool(snapshot.tasks or snapshot.rounds or snapshot.assignments)

    def start(self) -> None:
        """Mend what the stop interrupted, and tick."""
        check_restored(self)
        if self._restored:
            self.post(Restored())
        self._tick()

    def crash(self) -> None:
        """Lose all that is in memory; every connection breaks."""
        self.crashed = self._aggregator.crashed = True
        self._journal.crash()
        for connection in self.peers.values():
            connection.cut()
            connection.client.notice_later(connection)

    def receive(self, connection: Connection, message: Message) -> None:
        """Take one message of a client."""
        if self.crashed:
            return
        connection.last_heard = self.world.agenda.now
        self.world.tell("%s says %s", connection.client_id, message)
        if isinstance(message, Hello):
            self._admit(connection, message)
        elif self.peers.get(connection.client_id) is not connection:
            return  # that wire has ended
        elif isinstance(message, Result):
            connection.in_check += 1
            self.world.agenda.after(self.world.weather.check_seconds(), lambda: self._result(connection, message))
        elif isinstance(message, Bye):
            self.lose(connection, "it left")
        elif isinstance(message, Error):
            failure = failure_of(connection, message)  # type: ignore[arg-type]  # a peer, for what it needs
            check(failure is not None, "clients of the simulation speak of assignments")
            self.post(failure)  # type: ignore[arg-type]
        elif isinstance(message, Ready):
            connection.overtaken += connection.in_check
            here = (connection.client_id, connection.incarnation)
            self.post(ClientReady(*here, message.slots, message.environments, message.wanted))
        elif (event := event_of(connection, message)) is not None:  # type: ignore[arg-type]
            if isinstance(message, Reject | Resume):
                self._note_owner(connection, message)
            self.post(event)

    def _note_owner(self, connection: Connection, message: Reject | Resume) -> None:
        """Remember what an owner does not allow, until the client says that they may think otherwise."""
        if isinstance(message, Resume):
            refused, here = self.world.audit.refused, (connection.client_id, connection.incarnation)
            self.world.audit.refused = {one for one in refused if one[1:] != here}
        elif message.code is RejectCode.OWNER:
            self._note_refusal(connection, message)

    def _note_refusal(self, connection: Connection, refusal: Reject) -> None:
        """Remember what an owner refused; a part of a round that is over tells nothing any more."""
        lease = self.coordinator._farm.leases.get(refusal.assignment_id)
        if lease is not None and lease.record.fence == refusal.fence and not lease.is_late:
            here = (lease.record.task_id, connection.client_id, connection.incarnation)
            self.world.audit.refused.add(here)

    def lose(self, connection: Connection, reason: str) -> None:
        """End a connection from this side."""
        if self.crashed or self.peers.get(connection.client_id) is not connection:
            return
        del self.peers[connection.client_id]
        connection.cut()
        connection.client.notice_later(connection)
        self.post(ClientLost(connection.client_id, connection.incarnation, reason))

    def _admit(self, connection: Connection, hello: Hello) -> None:
        if (old := self.peers.get(hello.client_id)) is not None:
            self.lose(old, "replaced by a newer connection of the same client")
        connection.incarnation = self._incarnations.get(hello.client_id, 0) + 1
        self._incarnations[hello.client_id] = connection.incarnation
        self.peers[hello.client_id] = connection
        connection.down(Welcome(version=1, incarnation=connection.incarnation))
        self.post(ClientConnected(hello, "hash", connection.incarnation))

    def _result(self, connection: Connection, result: Result) -> None:
        """Results are checked apart, and may be done only after the connection that brought them has ended."""
        connection.in_check -= 1
        if self.crashed:
            return
        if self.world.weather.result_is_refused():
            here = (connection.client_id, connection.incarnation, result.assignment_id, result.fence)
            self.post(AssignmentFailed(*here, "bad_update", "it has another layout", Scope.ELSEWHERE))
            return
        lease = self.coordinator._farm.leases.get(result.assignment_id)
        output = result.update if lease is not None and lease.record.kind is Kind.MAP else None
        update = None if output is not None else result.update
        if update is not None:
            self._aggregator.hold(update)
        self.post(
            ResultArrived(
                connection.client_id,
                connection.incarnation,
                result.assignment_id,
                result.fence,
                result.samples,
                result.metrics,
                update,
                result.compute_seconds,
                result.flops_per_sample,
                result.artefacts,
                output,
            )
        )

    def ask(self, event: Event) -> str | None:
        """Do what a person wants, or return why not."""
        try:
            self._handle(self._with_record(event))
        except FarmError as error:
            return error.message
        return None

    def _with_record(self, event: Event) -> Event:
        """Say with a request what is recorded of its task, if that has ended and left the coordinator's memory."""
        ledger = self.world.ledger
        if not isinstance(event, TaskAction) or self.coordinator.holds(event.task_id):
            return event
        record = ledger.tasks.get(event.task_id)
        if record is None or record.state not in ENDED:
            return event
        return TaskRecalled(record, next(iter(reversed(ledger.checkpoints_of(event.task_id))), None), event)

    def forgotten_updates(self) -> list[str]:
        """Return the updates that lie on the disk for ever, while all tasks have ended."""
        waiting = {command.update.digest for command in self._queue if isinstance(command, Fold | DropUpdate)}
        return [digest for digest in self._aggregator.forgotten() if digest not in waiting]

    def post(self, event: Event) -> None:
        """Tell the coordinator of a fact, which it has no reason to refuse."""
        if self.crashed:
            return
        try:
            self._handle(event)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(event).__name__} is not handled: {error!r}") from error

    def _handle(self, event: Event) -> None:
        commands = self.coordinator.handle(event, self.world.server_now())
        self.world.events += 1
        for number, command in enumerate(commands):
            if isinstance(command, ReportDefect):
                self._report(command)
            check(not isinstance(command, Save) or number == 0, "one Save comes first")
            check_command(self, command)
            self._queue.append(self._journal.submit(command) if isinstance(command, Save) else command)
        check_farm(self, isinstance(event, Tick))
        self._advance()

    def _report(self, defect: ReportDefect) -> None:
        if not isinstance(defect.error, Planted):
            raise Violation(defect.message) from defect.error
        if defect.task_id is not None and not self.coordinator.holds(defect.task_id):
            self.given_up.add(defect.task_id)

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        while self._queue and not self.crashed:
            head = self._queue[0]
            if isinstance(head, Ticket) and not head.durable:
                break
            self._queue.popleft()
            if not isinstance(head, Ticket):
                self._carry_out(head)
        self._advancing = False

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send():
                self._send(command)
            case DropUpdate():
                self._aggregator.drop(command)
            case OpenRound() | Fold() | CommitRound() | FlushCheckpoint() | DropRound() | ReleaseTask():
                self.world.tell("does %s", command)
                self._aggregator.submit(command)
            case ConfirmEnd():
                self._confirm(command.record)

    def _confirm(self, record: TaskRecord) -> None:
        self.post(EndConfirmed(record))
        if not self.coordinator.holds(record.task_id):
            self.world.tell("task %s has left the memory", record.task_id)
            check_evicted(self.world.ledger, record)

    def _send(self, command: Send) -> None:
        message, ledger = command.message, self.world.ledger
        if isinstance(message, Assign):
            version = ledger.tasks[message.task.task_id].version
            saved = message.assignment_id in ledger.assignments or message.round > version
            check(saved, f"{message.assignment_id} is sent before it is saved")
            check(message.round <= version + MOST_ROUNDS, f"{message.assignment_id} is too far ahead of the disk")
        if isinstance(message, Ack) and message.counted:
            record = ledger.assignments[message.assignment_id]
            counts = record.kind in {Kind.TRAIN, Kind.MAP}
            check(record.counted or not counts, f"{message.assignment_id}: ack before it is durable")
        connection = self.peers.get(command.client_id)
        if connection is not None and connection.incarnation == command.incarnation:
            self.world.tell("to %s: %s", command.client_id, message)
            connection.down(message)

    def _tick(self) -> None:
        if self.crashed:
            return
        for connection in list(self.peers.values()):
            if self.world.agenda.now - connection.last_heard > LOST_AFTER_SECONDS:
                self.lose(connection, f"silent for more than {LOST_AFTER_SECONDS:g} s")
        self.post(Tick())
        self.world.agenda.after(TICK_SECONDS, self._tick)
