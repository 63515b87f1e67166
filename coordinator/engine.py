"""The only way to change the farm: ``Coordinator.handle(event, now) -> commands``.

The rules live in the modules that it dispatches to; none of them does I/O, reads a clock or draws a random number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from types import MappingProxyType
from typing import Any, Final

from coordinator import failures, fleet, recovery, results, scheduling, secure_steps, tasks, views
from coordinator.commands import Command, ReportDefect
from coordinator.containment import contained, describe
from coordinator.durability import checkpoint_durable
from coordinator.events import (
    AggregationFailed,
    AssignmentAccepted,
    AssignmentFailed,
    AssignmentRejected,
    CheckpointDamaged,
    CheckpointDurable,
    ClientBeat,
    ClientConnected,
    ClientDraining,
    ClientLost,
    ClientPaused,
    ClientReady,
    ClientRemoved,
    ClientThrottled,
    EndConfirmed,
    Event,
    IdentityShared,
    Restored,
    ResultArrived,
    RoundAggregated,
    ServerShort,
    SharesRevealed,
    SharesSealed,
    TaskAction,
    TaskPrioritized,
    TaskRecalled,
    TaskRemoved,
    TaskSubmitted,
    Tick,
)
from coordinator.expiry import expire, forgive
from coordinator.records import AssignmentRecord, Snapshot, TaskRecord
from coordinator.rounds import round_aggregated
from coordinator.settings import CoordinatorSettings
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.rest import ClientView, Explanation, RoundView, TaskView
from protocol.tasks import TaskSpec


def _tick(turn: Turn, event: Tick) -> None:
    if event.late_seconds > 0:
        forgive(turn, event.late_seconds)
    expire(turn)


RULES: Final[Mapping[type, Callable[[Turn, Any], None]]] = MappingProxyType(
    {
        TaskSubmitted: tasks.submit,
        TaskAction: tasks.act,
        TaskPrioritized: tasks.prioritize,
        ClientConnected: fleet.connected,
        ClientLost: fleet.lost,
        IdentityShared: fleet.identity_shared,
        ClientReady: fleet.ready,
        ClientPaused: fleet.paused,
        ClientThrottled: fleet.throttled,
        ClientDraining: fleet.draining,
        ClientBeat: results.beat,
        AssignmentAccepted: results.accepted,
        AssignmentRejected: failures.rejected,
        SharesSealed: secure_steps.sealed,
        SharesRevealed: secure_steps.revealed,
        AssignmentFailed: failures.failed,
        ResultArrived: results.arrived,
        RoundAggregated: round_aggregated,
        CheckpointDurable: checkpoint_durable,
        AggregationFailed: results.aggregation_failed,
        ServerShort: results.server_short,
        TaskRemoved: tasks.remove,
        EndConfirmed: tasks.evict,
        ClientRemoved: fleet.remove,
        CheckpointDamaged: recovery.fall_back,
        Tick: _tick,
        Restored: lambda turn, _: recovery.mend(turn),
    }
)

REQUESTS: Final[Mapping[type, Callable[[Turn, Any], None]]] = MappingProxyType(
    {
        TaskSubmitted: tasks.check_submission,
        TaskAction: tasks.check_action,
        TaskPrioritized: tasks.check_priority,
        TaskRemoved: tasks.check_removal,
        ClientRemoved: fleet.check_removal,
    }
)
"""What a person asks for may be refused. All other errors are defects."""

UNEVENTFUL: Final = frozenset({ClientBeat, AssignmentAccepted, IdentityShared, EndConfirmed})
"""Events after which nobody can be served who could not be before."""


OF_ALL: Final = frozenset({Tick, Restored, TaskPrioritized})
"""Events after which all tasks are looked at: time has passed, or their order is another."""


class Broken(RuntimeError):
    """A rule of the farm that is of no task raised; the event is as if it had not been."""


class Coordinator:
    """The farm's decisions: who works on what, what counts, and what happens next.

    ``new_id`` makes assignment ids, ``draw`` uniform numbers in [0, 1) for jitter; both are the shell's, so that a
    simulation can repeat itself.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        settings: CoordinatorSettings,
        new_id: Callable[[], str],
        draw: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._settings = settings
        self._new_id = new_id
        self._draw = draw
        self._farm = recovery.restore(snapshot)
        self._offers = True

    def offer_nothing_more(self) -> None:
        """Take in what comes, and give out no work: the server goes down."""
        self._offers = False

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in a fact and say what must follow, in order.

        ``now`` is in seconds and never goes back. What breaks in the rules of one task ends its attempt and is
        reported (``ReportDefect``); the turn holds for all others. Raises: NotFound, Conflict or IllegalTransition for
        a request (``REQUESTS``) that the farm refuses; Broken if a rule of no task breaks. Nothing has
        changed then.
        """
        if isinstance(event, TaskRecalled):
            return self._recall(event, now)
        turn = Turn(self._farm, self._settings, self._new_id, self._draw, now, cause=type(event).__name__)
        if (refuse := REQUESTS.get(type(event))) is not None:
            refuse(turn, event)
        self._apply(turn, event)
        if self._offers and type(event) not in UNEVENTFUL:
            self._schedule(turn, everything=type(event) in OF_ALL)
        tasks.confirm_ends(turn)
        return turn.answer()

    def _recall(self, event: TaskRecalled, now: float) -> list[Command]:
        """Do what is asked of a task that only the ledger has; what is refused, or breaks, leaves it there."""
        if self.holds(event.record.task_id):  # somebody else was faster
            return self.handle(event.request, now)
        run = tasks.recall(self._moment(now), event)
        try:
            return self.handle(event.request, now)
        except Exception:
            self._farm.evict(run)
            raise

    def _apply(self, turn: Turn, event: Any) -> None:
        """Apply the event's rule: in the guard of its task, if it is of one."""
        rule, run = RULES[type(event)], self._task_of(event)
        if run is not None:
            contained(turn, run, rule, event)
            return
        try:
            rule(turn, event)
        except Exception as error:
            if isinstance(event, TaskSubmitted):
                self._farm.drop(event.task_id)
            raise Broken(describe(turn, error)) from error

    def _task_of(self, event: Any) -> TaskRun | None:
        if (task_id := getattr(event, "task_id", None)) is not None:
            return self._farm.tasks.get(task_id)
        return self._farm.run_of(getattr(event, "assignment_id", ""))

    def _schedule(self, turn: Turn, everything: bool) -> None:
        try:
            scheduling.schedule(turn, everything)
        except Exception as error:  # of no task: each is served in its own guard
            turn.do(ReportDefect(None, describe(turn, error), error))

    def assignment(self, assignment_id: str) -> AssignmentRecord | None:
        """Return an assignment that is in flight: given out, and neither given up nor in a durable round."""
        lease = self._farm.leases.get(assignment_id)
        return None if lease is None else lease.record

    def holds(self, task_id: str) -> bool:
        """Whether a task is in memory: it has not ended, or its end is not durable yet."""
        return task_id in self._farm.tasks

    def task_view(self, task_id: str, now: float) -> TaskView:
        """Return one task for people. Raises: NotFound, also for one that has left the memory."""
        return views.task_view(self._moment(now), self._farm.task(task_id))

    def ended_view(self, record: TaskRecord) -> TaskView:
        """Return one task for people that has left the memory, as the ledger has it."""
        return views.ended_view(record)

    def spec(self, task_id: str) -> TaskSpec:
        """Return what was submitted. Raises: NotFound."""
        return self._farm.task(task_id).record.spec

    def task_views(self, now: float) -> list[TaskView]:
        """Return all tasks that are in memory, newest first."""
        runs = sorted(self._farm.tasks.values(), key=lambda r: (r.record.created_at, r.task_id), reverse=True)
        moment = self._moment(now)
        return [views.task_view(moment, run) for run in runs]

    def open_round_view(self, task_id: str, now: float) -> RoundView | None:
        """Return the round that is open, if one is. Raises: NotFound."""
        return views.open_round_view(self._farm.task(task_id), now)

    def client_views(self, now: float, newest: int | None = None) -> list[ClientView]:
        """Return all known clients, or the ``newest`` ones, the connected ones first."""
        chosen: Iterable[ClientState] = self._farm.clients.values()
        if newest is not None:
            chosen = nsmallest(newest, chosen, key=lambda c: (not c.online, -c.record.last_seen))
        ordered = sorted(chosen, key=lambda c: (not c.online, c.record.name, c.client_id))
        return [views.client_view(client, now) for client in ordered]

    def client_count(self) -> int:
        """Count the known clients."""
        return len(self._farm.clients)

    def client_name(self, client_id: str) -> str:
        """Return what a client is called; empty for one that is not known."""
        client = self._farm.clients.get(client_id)
        return "" if client is None else client.record.name

    def why(self, task_id: str, now: float) -> str:
        """Return in one line what a task waits for. Raises: NotFound."""
        return views.why(self._moment(now), self._farm.task(task_id))

    def explain(self, task_id: str, now: float) -> Explanation:
        """Return every client's score for a task, or why it is left out. Raises: NotFound."""
        return views.explain(self._moment(now), self._farm.task(task_id))

    def explain_ended(self, record: TaskRecord, now: float) -> Explanation:
        """Return every client's score for a task that has left the memory, as if it could be served."""
        return views.explain(self._moment(now), tasks.new_run(record))

    def _moment(self, now: float) -> Turn:
        """Return a turn that is only looked at."""
        return Turn(self._farm, self._settings, self._new_id, self._draw, now, cause="a question")
