"""A secure sum goes on: what clients answer, and what the clock ends (``coordinator.secure_sum`` has the phases)."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.events import SharesRevealed, SharesSealed
from coordinator.in_flight import Lease, Stage
from coordinator.lifecycle import TaskState
from coordinator.offers import cancel, forget
from coordinator.records import AssignmentRecord
from coordinator.rounds import abandon, commit, make_version
from coordinator.secure_sum import SecurePhase, SecureRound, point_of
from coordinator.secure_telling import tell
from coordinator.state import Step, StepPhase, TaskRun
from coordinator.turn import Turn
from protocol.secure_messages import KeysAt, PublicKeys
from protocol.wording import counted


def advertise(turn: Turn, run: TaskRun, lease: Lease, keys: PublicKeys | None) -> None:
    """A client accepts a part, and brings its keys."""
    found = _of(run, lease)
    if found is None or keys is None or found[1].phase is not SecurePhase.KEYS:
        return
    step, secure = found
    secure.keys.setdefault(lease.assignment_id, keys)
    if not step.parts.waiting and all(name in secure.keys for name in step.parts.held):
        _close_list(turn, run, step, secure)


def _close_list(turn: Turn, run: TaskRun, step: Step, secure: SecureRound) -> None:
    """The round's clients are those whose keys are here. Who has none has no part in it."""
    turn.farm.leases.close_list(step.parts)
    keyed = {
        point_of(lease.record): secure.keys[name] for name, lease in step.parts.held.items() if name in secure.keys
    }
    secure.advertised = tuple(KeysAt(point=point, keys=keys) for point, keys in sorted(keyed.items()))
    _go_to(turn, run, step, SecurePhase.SHARES, keyed.keys())


def sealed(turn: Turn, event: SharesSealed) -> None:
    """A client shared its secrets with all others of the list. What is of other clients is no answer."""
    found = _answered(turn, event)
    if found is None or found[2].phase is not SecurePhase.SHARES:
        return
    run, step, secure, record = found
    point, shares = point_of(record), {one.point: one for one in event.shares}
    if point not in secure.points or shares.keys() != secure.points - {point}:
        return
    secure.shares.setdefault(point, shares)
    if all(
        point_of(lease.record) in secure.shares for lease in (*step.parts.held.values(), *step.parts.dormant.values())
    ):
        _agree(turn, run, step, secure)


def _agree(turn: Turn, run: TaskRun, step: Step, secure: SecureRound) -> None:
    """Those who shared agree on masks with each other; who did not has dropped out before anything was masked."""
    secure.sharers = frozenset(secure.shares)
    _go_to(turn, run, step, SecurePhase.MASKED, secure.sharers)


def revealed(turn: Turn, event: SharesRevealed) -> None:
    """A survivor gave its shares: of each sharer the one kind, and never both."""
    found = _answered(turn, event)
    if found is None or found[2].phase is not SecurePhase.REVEAL or found[1].phase is not StepPhase.REVEAL:
        return
    run, step, secure, record = found
    survivors, told = frozenset(secure.survivors), event.revealed
    of_self, of_keys = ({one.point for one in shares} for shares in (told.self_shares, told.key_shares))
    if point_of(record) not in survivors or of_self != survivors or of_keys != secure.sharers - survivors:
        return
    secure.revealed.setdefault(point_of(record), told)
    if len(secure.revealed) == len(survivors):
        make_version(turn, run, step)


def look(turn: Turn, run: TaskRun, step: Step, secure: SecureRound) -> None:
    """Remind who came back, and end what takes too long. Called at each tick."""
    is_late = turn.now - secure.since > turn.settings.offer_seconds
    match secure.phase:
        case SecurePhase.KEYS if is_late and run.record.state is not TaskState.PENDING:
            _close_list(turn, run, step, secure)
        case SecurePhase.SHARES if is_late:
            _agree(turn, run, step, secure)
        case SecurePhase.MASKED:
            _look_for_the_gone(turn, run, step, secure)
        case SecurePhase.REVEAL if step.phase is StepPhase.REVEAL:
            _look_for_reveals(turn, run, step, secure, is_late)
    if run.step is step and step.phase is not StepPhase.COMMIT:
        tell(turn, step, secure)


def _look_for_the_gone(turn: Turn, run: TaskRun, step: Step, secure: SecureRound) -> None:
    """Count who is gone for long as dropped out, once all others have delivered."""
    parts = step.parts
    hopeful = len(parts.held) + len(parts.delivered) + len(parts.dormant)
    if hopeful < secure.terms.threshold:
        begin_again(turn, run, _too_few(step, secure, hopeful))
    elif parts.held or len(parts.delivered) < secure.terms.threshold:
        secure.alone_since = None
    elif not parts.dormant:
        commit(turn, run, step)
    elif secure.alone_since is None:
        secure.alone_since = turn.now
    elif turn.now - secure.alone_since > turn.settings.return_seconds:
        commit(turn, run, step)


def _look_for_reveals(turn: Turn, run: TaskRun, step: Step, secure: SecureRound, is_late: bool) -> None:
    """Go on with the threshold's shares where nobody else is there to give some, or answers in time."""
    clients = turn.farm.clients
    silent = [x for point, x in secure.survivors.items() if point not in secure.revealed]
    is_awaited = any((c := clients.get(x.record.client_id)) is not None and c.online for x in silent)
    if is_awaited and not is_late:
        return
    if len(secure.revealed) >= secure.terms.threshold:
        make_version(turn, run, step)
    elif is_late:
        begin_again(turn, run, f"only {len(secure.revealed)} of {len(secure.survivors)} unmasked the sum")


def begin_again(turn: Turn, run: TaskRun, why: str) -> None:
    """Too few are left of this attempt: abandon it. The next one has fresh keys, after a while, and costs no retry."""
    abandon(turn, run, why)
    if run.record.state in (TaskState.ASSIGNED, TaskState.RUNNING):
        run.desertions += 1
        wait = turn.settings.desertion_retry.delay_seconds(run.desertions, turn.draw())
        turn.move(run, TaskState.PENDING, why, not_before=turn.now + wait)


def _go_to(turn: Turn, run: TaskRun, step: Step, phase: SecurePhase, left: Collection[int]) -> None:
    """Begin a phase with these clients, by point: all others have no part in the round."""
    secure = step.secure
    if secure is None:
        raise RuntimeError(f"round {step.number} of {run.task_id} is no secure sum")
    for lease in [x for x in step.parts.held.values() if point_of(x.record) not in left]:
        cancel(turn, run, lease, "the round's clients went on without it")
    for lease in [x for x in step.parts.dormant.values() if point_of(x.record) not in left]:
        forget(turn, lease)
    if len(left) < secure.terms.threshold:
        begin_again(turn, run, _too_few(step, secure, len(left)))
        return
    secure.enter(phase, turn.now)
    tell(turn, step, secure)


def _too_few(step: Step, secure: SecureRound, left: int) -> str:
    who = counted(left, "client")
    return f"{step.policy.title(step.number)} has {who} left, and its sum needs {secure.terms.threshold} to be unmasked"


def _of(run: TaskRun, lease: Lease) -> tuple[Step, SecureRound] | None:
    step = run.step
    if step is None or step.secure is None or lease.home != step.parts.home:
        return None
    return step, step.secure


def _answered(
    turn: Turn, event: SharesSealed | SharesRevealed
) -> tuple[TaskRun, Step, SecureRound, AssignmentRecord] | None:
    """Return what an answer is of; None if that is over."""
    lease = turn.farm.leases.find(event, Stage.HELD, Stage.DELIVERED)
    if lease is None:
        return None
    run = turn.farm.tasks[lease.record.task_id]
    found = _of(run, lease)
    return None if found is None else (run, *found, lease.record)
