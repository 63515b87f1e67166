"""What a task is given now, and why: decided without any effect, for the scheduler and for `farm why`.

Reasons are made when somebody asks for them; to decide costs no more than to look at the clients that are free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from math import inf

from coordinator.durability import waits_for_disk
from coordinator.eligibility import available, eligible
from coordinator.handing_out import wants_more, works_on
from coordinator.lifecycle import TaskState
from coordinator.pools import Pool
from coordinator.queue import band, fair_share
from coordinator.scoring import best
from coordinator.state import ClientState, TaskRun
from coordinator.stints import expected_by, is_in_stint
from coordinator.stopping import is_finished
from coordinator.turn import Turn
from protocol.assignments import Kind
from protocol.wording import ClientNames, counted

MANY_CLIENTS = 100


class Outcome(Enum):
    """What happens to a task that waits for clients."""

    DONE = auto()
    """It has trained all."""
    NOBODY = auto()
    """No connected client can work on it."""
    WAIT = auto()
    OFFER = auto()
    """Parts of its open step go to free clients."""
    OPEN = auto()
    """Its next step opens."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a task gets, and a clause that says what it waits for.

    ``clients`` get parts of it; ``reserved`` are kept free for it (None: those that are already).
    """

    outcome: Outcome
    reason: Callable[[], str] = str
    clients: Sequence[ClientState] = ()
    reserved: Sequence[ClientState] | None = ()


class Outlook:
    """One moment's view of who outranks whom; what several tasks' verdicts need is worked out once.

    Unless it is ``thorough``, nobody looks through a large number of clients in vain.
    """

    def __init__(self, turn: Turn, thorough: bool = True) -> None:
        self.turn = turn
        self.thorough = thorough
        self._bands: dict[str, int] = {}
        self._goes_on: dict[str, bool] = {}

    def band(self, run: TaskRun) -> int:
        """Return a task's priority, with its age."""
        known = self._bands.get(run.task_id)
        if known is None:
            known = self._bands[run.task_id] = band(run.record, self.turn.now, self.turn.settings.ageing_seconds)
        return known

    def peers(self, run: TaskRun) -> int:
        """Count the tasks of this one's band that wait to open a step and could use a free client; itself included."""
        own = self.band(run)
        return sum(1 for other in self._waiting_to_open() if other is run or self.band(other) == own)

    def is_wanted(self, client: ClientState, run: TaskRun) -> bool:
        """Whether another task that has no step could take this client: nobody may keep it for a round to come then."""
        return any(
            other is not run and client.client_id in self.turn.farm.pool(other, self.turn.now).idle
            for other in self._waiting_to_open()
        )

    def yields(self, client: ClientState, run: TaskRun) -> bool:
        """Whether a task that always has work must leave a client to another one, whose turn has come and can open."""
        turn = self.turn
        if is_in_stint(client, run, turn.settings, turn.now):
            return False
        for other in self._waiting_to_open():
            pool = turn.farm.pool(other, turn.now)
            can_open = client.client_id in pool.idle and len(pool.present) >= needed_clients(other)
            if other is not run and can_open and self.band(other) >= self.band(run):
                return True
        return False

    def _waiting_to_open(self) -> Iterable[TaskRun]:
        now, farm = self.turn.now, self.turn.farm
        for other in farm.live.values():
            if other.step is None and other.record.not_before <= now and farm.pool(other, now).idle:
                yield other

    def idle(self, run: TaskRun, pool: Pool) -> list[ClientState]:
        """Return the free clients that may be given to a task now, in the order in which they first came."""
        now = self.turn.now
        free = [c for c in pool.idle.values() if not self.keeper(c, run) and available(c, run, now).value]
        return sorted(free, key=lambda client: client.place)

    def keeper(self, client: ClientState, run: TaskRun) -> TaskRun | None:
        """Return the other task that a free client is kept for, if it is kept against this one."""
        farm, now, settings = self.turn.farm, self.turn.now, self.turn.settings
        gang = farm.reserved.get(client.client_id)
        if gang is not None and gang is not run and gang.step is None and self.band(gang) > self.band(run):
            return gang
        if not client.stints or is_in_stint(client, run, settings, now):
            return None
        for task_id in expected_by(client, settings, now):
            other = farm.live.get(task_id)
            if other is not None and other is not run and self._expects(other, client, run):
                return other
        return None

    def _expects(self, other: TaskRun, client: ClientState, run: TaskRun) -> bool:
        """Whether a task will soon have work for a client of its, which this one may not take away."""
        if run.record.priority > other.record.priority or other.record.not_before > self.turn.now:
            return False
        if any(lease.record.task_id == other.task_id for lease in client.held.values()):
            return False  # it has what it wants of it
        known = self._goes_on.get(other.task_id)
        if known is None:
            known = not is_finished(other.record) or other.looks_first or other.step is not None
            self._goes_on[other.task_id] = known
        return known

    def can_be_had(self, client: ClientState, run: TaskRun) -> bool:
        """Whether a client will come free for a task: all that it does is for tasks that this one outranks."""
        if not available(client, run, self.turn.now).value:
            return False
        tasks = (self.turn.farm.tasks[lease.record.task_id] for lease in client.held.values())
        return all(task is run or self.band(task) < self.band(run) for task in tasks)


def verdict(turn: Turn, run: TaskRun, outlook: Outlook) -> Verdict:
    """Decide what a live task gets now. Nothing changes."""
    if run.step is None and (unwritten := waits_for_disk(run, turn.now)) is not None:
        return Verdict(Outcome.WAIT, lambda: unwritten)
    if run.step is None and is_finished(run.record) and not run.looks_first:
        return Verdict(Outcome.DONE)
    pool = turn.farm.pool(run, turn.now)
    # a round may open with what was done ahead of it, and one that hands out waits for what is late
    works = bool(run.step.parts.held) if run.step else run.ahead.is_given_out
    works |= run.policy(Kind.TRAIN).hands_out and bool(run.late.held)
    if not works and not _anybody(turn, run, pool):
        return Verdict(Outcome.NOBODY, lambda: nobody(turn, run))
    if run.record.state is TaskState.PENDING and run.record.not_before > turn.now:
        wait_seconds = run.record.not_before - turn.now
        return Verdict(Outcome.WAIT, lambda: f"begins again in {wait_seconds:.0f} s ({run.record.reason})")
    if run.step is not None:
        offers = run.step.parts.waiting or wants_more(run)
        return Verdict(Outcome.OFFER, clients=outlook.idle(run, pool) if offers else ())
    return _choose(turn, run, pool, outlook)


def _anybody(turn: Turn, run: TaskRun, pool: Pool) -> bool:
    return any(available(c, run, turn.now).value for book in (pool.idle, pool.present) for c in book.values())


def needed_clients(run: TaskRun, idle: Collection[str] = ()) -> int:
    """Return how many free clients the task's next step needs to open; those who are ``idle`` work on nothing."""
    recipe = run.record.spec.recipe
    if run.looks_first:
        return 1
    if run.record.version == 0 and recipe.init_min_clients is not None:
        return recipe.init_min_clients
    if run.policy(Kind.TRAIN).hands_out:
        return max(recipe.min_clients - len(works_on(run).difference(idle)), 0)
    return recipe.min_clients - len({record.client_id for record in run.ahead.records})


def _choose(turn: Turn, run: TaskRun, pool: Pool, outlook: Outlook) -> Verdict:
    """Choose the clients for the task's next step: nobody, with the reason, or at least as many as it needs."""
    needed = needed_clients(run, pool.idle)
    gathers = run.looks_first or not run.policy(Kind.TRAIN).hands_out
    if gathers and len(pool.idle) >= needed and (coming := _coming(turn, run, pool, 1)):
        return Verdict(Outcome.WAIT, lambda: f"waits a moment for {', '.join(_names(turn, coming))} to be ready")
    if MANY_CLIENTS < len(pool.idle) < needed and not outlook.thorough:
        return Verdict(Outcome.WAIT, lambda: _lacking(run, pool, outlook, needed), reserved=None)
    idle = outlook.idle(run, pool)
    if len(idle) < needed:
        reserved = idle if _can_be_whole(outlook, run, pool, needed) else ()
        return Verdict(Outcome.WAIT, lambda: _lacking(run, pool, outlook, needed), reserved=reserved)
    own = sum(1 for client in idle if is_in_stint(client, run, turn.settings, turn.now))
    limit = own + fair_share(len(idle) - own, outlook.peers(run), max(needed - own, 0)) if own < len(idle) else own
    most = run.record.spec.recipe.max_clients
    if most is not None:
        limit = min(limit, max(most, needed))
    return Verdict(Outcome.OPEN, clients=idle if limit >= len(idle) else best(run, idle, limit))


def _can_be_whole(outlook: Outlook, run: TaskRun, pool: Pool, needed: int) -> bool:
    """Whether as many clients as a task needs can be had at all, once they are free: else none is kept for it."""
    if needed < 2 or len(pool.present) < needed or not pool.idle:
        return False
    count = 0
    for client in pool.present.values():
        count += outlook.can_be_had(client, run)
        if count >= needed:
            return True
    return False


def _coming(turn: Turn, run: TaskRun, pool: Pool, most: int) -> list[ClientState]:
    """Return up to ``most`` clients that a step should wait a moment for."""
    longest = max(run.record.spec.recipe.gather_seconds, turn.settings.warm_up_seconds)
    found: list[ClientState] = []
    for client in turn.farm.pools.unready(turn.now - longest):
        if client.client_id not in pool.present or not _is_worth_waiting(turn, run, client, len(pool.idle)):
            continue
        if available(client, run, turn.now).value:
            found.append(client)
        if len(found) >= most:
            break
    return found


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


def _lacking(run: TaskRun, pool: Pool, outlook: Outlook, needed: int) -> str:
    """Return how many clients a task has, what the others do, and for whom free ones are kept."""
    turn = outlook.turn
    clients = [c for c in pool.present.values() if available(c, run, turn.now).value]
    free = [c for c in clients if c.slots > 0]
    kept = Counter(keeper.task_id for c in free if (keeper := outlook.keeper(c, run)) is not None)
    warming = sum(1 for c in clients if c.slots <= 0 and not c.held)
    busy = len(clients) - len(free) - warming
    counts = [f"{len(free) - kept.total()} are free", f"{busy} are busy"]
    counts += [f"{warming} warm up"] if warming else []
    counts += [f"{n} are kept for {_keeper(turn.farm.tasks[task_id])}" for task_id, n in kept.items()]
    return f"waits for {counted(needed, 'free client')}: {', '.join(counts)}"


def _keeper(keeper: TaskRun) -> str:
    spec = keeper.record.spec
    if not keeper.reserves:
        return f"{spec.name}, whose turn it is"
    return (
        f"{spec.name} (priority {keeper.record.priority}), which has {len(keeper.reserves)} of {needed_clients(keeper)}"
    )


def nobody(turn: Turn, run: TaskRun) -> str:
    """Return in a clause why no client can work on the task."""
    online = turn.farm.pools.connected
    if not online:
        return "no client is connected; volunteers join with `farm-client join`"
    some = list(islice(online.values(), 3))
    named = zip(_names(turn, some), some, strict=True)
    shown = "; ".join(f"{name} {eligible(client, run, turn.now).reason}" for name, client in named)
    fit = bool(turn.farm.pool(run, turn.now).qualified)
    kind = "no client can take it now" if fit else "no client meets its requirements"
    more = f"; and {len(online) - 3} more" if len(online) > 3 else ""
    return f"{kind}: {shown}{more}"


def _names(turn: Turn, clients: Sequence[ClientState]) -> list[str]:
    """Return what to call clients; those of one name are told apart."""
    asked = {client.record.name for client in clients}
    everybody = ((client.client_id, client.record.name) for client in turn.farm.clients.values())
    known = ClientNames((client_id, name) for client_id, name in everybody if name in asked)
    return [known.shown(client.client_id, client.record.name) for client in clients]
