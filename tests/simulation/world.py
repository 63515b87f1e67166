"""One seed, from the first event to the end of all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from coordinator.events import Action, Event, TaskAction, TaskSubmitted
from coordinator.lifecycle import ENDED, HELD, TaskState
from coordinator.maps import ranges_between
from coordinator.records import EventRecord, FailedItemRecord, RoundState, Snapshot, TaskRecord
from coordinator.shard_audit import shard_books
from protocol.secure_aggregation import LEAST_CLIENTS, is_secure
from protocol.tasks import Split, TaskSpec
from tests.simulation.agenda import Agenda
from tests.simulation.client import Client
from tests.simulation.durable import AuditedLedger
from tests.simulation.exact_weights import Update, value_of
from tests.simulation.network import Connection
from tests.simulation.scenario import Scenario, draw_scenario
from tests.simulation.server import Server
from tests.simulation.violation import Violation, check
from tests.simulation.weather import Weather

EPOCH_SECONDS = 1_000_000.0
LONGEST_CALM_SECONDS = 2_000.0


@dataclass(slots=True)
class Audit:
    """What the invariants remember between events."""

    assigned: set[str] = field(default_factory=set)
    folds: dict[tuple[Server, str], tuple[int, int]] = field(default_factory=dict)
    """By server life and task: the attempt that is open, and the position of its last fold."""
    refused: set[tuple[str, str, int]] = field(default_factory=set)
    """By task, client and connection: what an owner does not allow."""
    deaths: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """By task and item: the clients on which executors ended on that item alone."""


class World:
    """Everything there is. ``trace`` is called with a line for each thing that happens."""

    def __init__(self, scenario: Scenario, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = Random(scenario.seed + 1)
        self.agenda = Agenda()
        self.blobs: dict[str, int] = {}
        self.damaged: set[str] = set()
        """Digests of checkpoints that can't be read."""
        self.updates: dict[str, Update] = {}
        self.ledger = AuditedLedger(self.blobs)
        self.audit = Audit()
        self.weather = Weather(self)
        self.clients: list[Client] = [
            Client(self, m.name, m.slots, m.samples_per_second, m.keeps_jobs, m.sandboxes, m.allows, m.choices)
            for m in scenario.machines
        ]
        self.by_id = {c.client_id: c for c in self.clients}
        self.server: Server | None = None
        self.task_ids: list[str] = []
        self.wall_clock_offset = 0.0
        self.events = 0
        self._clock_offset = EPOCH_SECONDS
        self._ids = 0
        self._trace = trace

    def tell(self, text: str, *values: object) -> None:
        """Trace what happens."""
        if self._trace is not None:
            self._trace(f"{self.agenda.now:9.3f}  {text % values}")

    def server_now(self) -> float:
        """Read the server's clock: it takes the wall clock's time when it starts, and never jumps."""
        return self.agenda.now + self._clock_offset

    def new_id(self) -> str:
        """Number the assignments."""
        self._ids += 1
        return f"a{self._ids}"

    def draw_bytes(self, count: int) -> bytes:
        """Draw bytes that nobody can foretell, but who knows the seed."""
        return self.rng.randbytes(count)

    def start_server(self) -> None:
        """Start the server on what is durable."""
        if self.server is not None:
            return
        snapshot = self.ledger.snapshot()
        wall = self.agenda.now + EPOCH_SECONDS + self.wall_clock_offset
        self._clock_offset = max(wall, newest_time(snapshot)) - self.agenda.now
        self.tell("the server starts")
        self.server = Server(self, snapshot)
        self.server.start()

    def crash_server(self) -> None:
        """End the server without a word."""
        if self.server is not None:
            server, self.server = self.server, None
            server.crash()

    def server_notices_later(self, connection: Connection) -> None:
        """Let the server hear of the end of a connection after a while, or only by the silence."""
        if self.rng.random() < 0.7:
            reason = "the connection closed"
            self.agenda.after(self.weather.notice_seconds(), lambda: self._server_notices(connection, reason))

    def _server_notices(self, connection: Connection, reason: str) -> None:
        if self.server is not None:
            self.server.lose(connection, reason)

    def submit(self, spec: TaskSpec) -> None:
        """A researcher submits; if the server is down, they try again."""
        self.blobs.setdefault(spec.initial_weights.digest, 0)
        task_id = f"t{len(self.task_ids) + 1}"
        self.task_ids.append(task_id)
        self._submit(TaskSubmitted(task_id, spec))

    def _submit(self, event: TaskSubmitted) -> None:
        """A submission is told to have succeeded when it is durable; one that was lost before is repeated."""
        if event.task_id in self.ledger.tasks:
            return
        self.ask(event)
        self.agenda.after(5.0, lambda: self._submit(event))

    def ask(self, event: Event) -> None:
        """A person asks for something; a refusal changes nothing."""
        if self.server is not None:
            if isinstance(event, TaskAction) and event.action is Action.RETRY:
                self.audit.refused = {one for one in self.audit.refused if one[0] != event.task_id}
            refusal = self.server.ask(event)
            self.tell("a person asks for %s: %s", event, refusal or "done")

    def run(self) -> World:
        """Live until all tasks have ended. Raises: Violation."""
        self.start_server()
        for machine, client in zip(self.scenario.machines, self.clients, strict=True):
            self.agenda.after(machine.joins_at, client.start)
        for when, spec in self.scenario.tasks:
            self.agenda.after(when, lambda spec=spec: self.submit(spec))  # type: ignore[misc]
        self.weather.begin()
        limit = self.scenario.stormy_seconds + LONGEST_CALM_SECONDS
        while not self._is_over():
            self.agenda.step()
            if self.agenda.now > limit:
                raise Violation(f"the farm does not come to rest: {self._unfinished()}")
        self._check_end()
        return self

    def _is_over(self) -> bool:
        if self.agenda.now < self.scenario.stormy_seconds or len(self.ledger.tasks) < len(self.task_ids):
            return False
        if any(not self._has_left(task) and not self._waits_for_ever(task) for task in self.ledger.tasks.values()):
            return False
        return not any(client.outbox or client.jobs for client in self.clients)

    def _has_left(self, task: TaskRecord) -> bool:
        """Whether the task has ended, and the server's memory has nothing of it."""
        return task.state in ENDED and (self.server is None or not self.server.coordinator.holds(task.task_id))

    def _waits_for_ever(self, task: TaskRecord) -> bool:
        """Whether the task needs what no machine has, and says so."""
        if not task.spec.requirements.tags or self.server is None:
            return False
        why = self.server.coordinator.why(task.task_id, self.server_now())
        return "lacks the tag" in why or task.state is TaskState.PAUSED

    def _unfinished(self) -> str:
        tasks = [f"{t.task_id} is {t.state} ({t.reason})" for t in self.ledger.tasks.values() if t.state not in ENDED]
        clients = [f"{c.client_id} keeps {[*c.outbox, *c.jobs]}" for c in self.clients if c.outbox or c.jobs]
        return "; ".join(tasks + clients)

    def _check_end(self) -> None:
        for task in self.ledger.tasks.values():
            if task.state is TaskState.COMPLETED:
                self._check_whole(task)
                self._check_books(task.task_id)
        held = [a.assignment_id for a in self.ledger.assignments.values() if a.state in HELD]
        check(not held, f"nobody will ever settle {held}")
        forgotten = self.server.forgotten_updates() if self.server is not None else []
        check(not forgotten, f"nobody will ever delete the updates {forgotten}")
        rounds = [key for key, r in self.ledger.rounds.items() if r.state is RoundState.OPEN]
        check(not rounds, f"rounds {rounds} stay open for ever")

    def _check_whole(self, task: TaskRecord) -> None:
        recipe, samples = task.spec.recipe, task.spec.dataset.samples(Split.TRAIN)
        rounds_are_done = recipe.rounds is not None and task.version >= recipe.rounds
        if is_secure(recipe):  # an epoch may end with too few samples left for a sum
            samples -= LEAST_CLIENTS - 1
        epochs_are_done = recipe.epochs is not None and task.samples_done >= recipe.epochs * samples
        whole = rounds_are_done or epochs_are_done or bool(task.stopped)
        check(whole, f"{task.task_id} is complete after {task.version} rounds")
        self._check_stop(task)
        self._check_epoch_ends(task)
        self._check_outputs(task)

    def _check_outputs(self, task: TaskRecord) -> None:
        """Each item of a map has one output, that of this very item; or it failed, and executors ended on it alone."""
        if task.spec.map is None:
            return
        dataset, end = task.spec.dataset, 0
        failed = self.ledger.failed_items_of(task.task_id)
        check(task.items_failed == len(failed), f"{task.task_id} counts {task.items_failed} failed items: {failed}")
        for part in sorted([*self.ledger.outputs_of(task.task_id), *failed], key=lambda one: one.position):
            check(part.position == end, f"the outputs of {task.task_id} go from item {end} to {part.position}")
            if isinstance(part, FailedItemRecord):
                end += 1
                deaths = self.audit.deaths.get((task.task_id, part.position), [])
                check(len(deaths) >= 2, f"item {part.position} of {task.task_id} failed after {deaths}")
                continue
            end += part.samples
            expected = value_of(0, ranges_between(dataset, part.position, end))
            check(self.updates[part.digest].value == expected, f"{task.task_id} has others' outputs at {part.position}")
        check(end == dataset.samples(Split.TRAIN), f"the outputs of {task.task_id} end with item {end}")

    def _check_epoch_ends(self, task: TaskRecord) -> None:
        """The end of each epoch was shown to the code, and what it left is kept once, unless it was given up."""
        if not task.spec.epoch_end:
            return
        check(task.epochs_ended == task.epoch, f"{task.task_id} ended {task.epochs_ended} of {task.epoch} epochs")
        told = [e.entry for e in self.ledger.feeds[EventRecord] if e.entry.task_id == task.task_id]
        given_up = sum(1 for event in told if event.kind == "epoch_end_given_up")
        left = [file.epoch for file in self.ledger.artefacts_of(task.task_id)]
        whole = left == sorted(set(left)) and task.artefact_files == len(left)
        check(whole and (given_up or left == list(range(task.epoch))), f"{task.task_id} has artefacts of {left}")

    def _check_stop(self, task: TaskRecord) -> None:
        """A task stops by a rule that it has, and trains no round after the evaluation that says so."""
        recipe = task.spec.recipe
        if task.stopped:
            has_rule = recipe.max_seconds is not None or recipe.patience is not None or recipe.target is not None
            check(has_rule, f"{task.task_id} has no rule to stop by: {task.stopped}")
            lasted = (task.finished_at or 0.0) - (task.started_at or 0.0)
            in_time = "its time is up" not in task.stopped or lasted >= (recipe.max_seconds or 0.0)
            check(in_time, f"{task.task_id} had time left after {lasted:g} s")
        kept = [c for (task_id, _), c in self.ledger.checkpoints.items() if task_id == task.task_id and c.metrics]
        if recipe.target == "loss<=1":
            later = [c.round for c in kept if c.round < task.version]
            check(not later, f"{task.task_id} reached its target in version {later} and has version {task.version}")
        if recipe.patience is not None:
            patient = len(kept) <= recipe.patience + 1
            check(patient, f"{task.task_id} was no better in {len(kept) - 1} evaluations, and went on")

    def _check_books(self, task_id: str) -> None:
        task = self.ledger.tasks[task_id]
        counted = [a for a in self.ledger.assignments.values() if a.task_id == task_id]
        lacking: Counter[int] = Counter()
        for book in shard_books(task.spec.dataset.shards, counted):
            lacking[book.epoch] += book.samples - book.counted_samples
        for book in shard_books(task.spec.dataset.shards, counted):
            # too few samples for a secure sum are not trained on
            few = LEAST_CLIENTS - 1 if is_secure(task.spec.recipe) else 0
            whole = lacking.get(book.epoch, 0) <= few
            check(whole or book.epoch == task.epoch, f"epoch {book.epoch} of {task_id} is over without its samples")
            check(not book.repeated_samples, f"epoch {book.epoch} of {task_id} counted samples twice")


def newest_time(snapshot: Snapshot) -> float:
    """Return the latest moment that the ledger knows of, as ``DurableState`` does."""
    times = [snapshot.newest_at]
    times += [c.last_seen for c in snapshot.clients]
    times += [c.created_at for c in snapshot.checkpoints]
    return max(times, default=0.0)


def run_seed(seed: int, trace: Callable[[str], None] | None = None) -> World:
    """Run one seed. Raises: Violation."""
    return World(draw_scenario(seed), trace).run()
