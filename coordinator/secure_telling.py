"""What is sent to the clients of a secure sum in each of its phases, once over each connection that they have."""

from __future__ import annotations

from coordinator.secure_sum import SecurePhase, SecureRound, for_client, point_of
from coordinator.state import Step, StepPhase, TaskRun
from coordinator.turn import Turn
from protocol.messages import Message
from protocol.secure_messages import PeerShares, RoundKeys, Survivors


def ask_survivors(turn: Turn, run: TaskRun, step: Step, secure: SecureRound) -> None:
    """All updates that the sum is of are here: it is fixed from now on, and who is in it is asked to unmask it."""
    step.phase = StepPhase.REVEAL
    secure.survivors = {point_of(lease.record): lease for lease in step.parts.delivered.values()}
    secure.enter(SecurePhase.REVEAL, turn.now)
    tell(turn, step, secure)
    turn.note("secure_sum", f"round {step.number}: {len(secure.survivors)} updates are here, masked", run)


def tell(turn: Turn, step: Step, secure: SecureRound) -> None:
    """Tell those that are connected and were not told over this connection; they answer twice alike."""
    for lease in (secure.survivors if secure.phase is SecurePhase.REVEAL else step.parts.held).values():
        record = lease.record
        client = turn.farm.clients.get(record.client_id)
        if client is None or not client.online or secure.told.get(record.assignment_id) == client.incarnation:
            continue
        if (message := _message(secure, point_of(record), record.assignment_id, record.fence)) is not None:
            secure.told[record.assignment_id] = client.incarnation
            turn.send(client, message)


def _message(secure: SecureRound, point: int, assignment_id: str, fence: int) -> Message | None:
    """Return what the client at a point is to be told now, if anything."""
    match secure.phase:
        case SecurePhase.SHARES if point in secure.points and point not in secure.shares:
            return RoundKeys(assignment_id=assignment_id, fence=fence, advertised=secure.advertised)
        case SecurePhase.MASKED if point in secure.sharers:
            return PeerShares(assignment_id=assignment_id, fence=fence, shares=for_client(secure, point))
        case SecurePhase.REVEAL if point not in secure.revealed:
            return Survivors(assignment_id=assignment_id, fence=fence, points=tuple(sorted(secure.survivors)))
    return None
