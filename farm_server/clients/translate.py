"""A client's message as the coordinator's event: the same facts, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from coordinator import events
from farm_server.clients.registry import Peer
from farm_server.tensors.intake import NonFiniteUpdate
from protocol import assignments, messages, secure_messages
from protocol.errors import FarmError, Unavailable
from protocol.messages import Message, Scope


def _heartbeat(peer: Peer, message: messages.Heartbeat) -> events.Event:
    return events.ClientBeat(peer.client_id, peer.incarnation, message.load, message.assignments)


def _progress(peer: Peer, message: assignments.Progress) -> events.Event:
    return events.ClientBeat(peer.client_id, peer.incarnation, None, (message.progress,))


def _ready(peer: Peer, message: messages.Ready) -> events.Event:
    return events.ClientReady(peer.client_id, peer.incarnation, message.slots, message.environments, message.wanted)


def _accept(peer: Peer, message: assignments.Accept) -> events.Event:
    return events.AssignmentAccepted(
        peer.client_id, peer.incarnation, message.assignment_id, message.fence, message.keys
    )


def _sealed(peer: Peer, message: secure_messages.SealedShares) -> events.Event:
    return events.SharesSealed(peer.client_id, peer.incarnation, message.assignment_id, message.fence, message.shares)


def _revealed(peer: Peer, message: secure_messages.Revealed) -> events.Event:
    return events.SharesRevealed(peer.client_id, peer.incarnation, message.assignment_id, message.fence, message)


def _reject(peer: Peer, message: assignments.Reject) -> events.Event:
    return events.AssignmentRejected(
        peer.client_id, peer.incarnation, message.assignment_id, message.fence, message.code, message.message
    )


def _pause(peer: Peer, message: messages.Pause) -> events.Event:
    return events.ClientPaused(peer.client_id, peer.incarnation, paused=True, reason=message.reason)


def _resume(peer: Peer, _message: messages.Resume) -> events.Event:
    return events.ClientPaused(peer.client_id, peer.incarnation, paused=False)


def _drain(peer: Peer, message: messages.Drain) -> events.Event:
    return events.ClientDraining(peer.client_id, peer.incarnation, message.reason)


_EVENTS: Final[Mapping[type, Callable[[Peer, Any], events.Event]]] = MappingProxyType(
    {
        messages.Heartbeat: _heartbeat,
        assignments.Progress: _progress,
        messages.Ready: _ready,
        assignments.Accept: _accept,
        assignments.Reject: _reject,
        secure_messages.SealedShares: _sealed,
        secure_messages.Revealed: _revealed,
        messages.Pause: _pause,
        messages.Resume: _resume,
        messages.Drain: _drain,
    }
)


def event_of(peer: Peer, message: Message) -> events.Event | None:
    """Return the event that a message stands for; None for results, errors and byes, which need more than that."""
    make = _EVENTS.get(type(message))
    return make(peer, message) if make else None


def failure_of(peer: Peer, error: messages.Error) -> events.AssignmentFailed | None:
    """Return what a client's error says of its assignment, or None if it is of no assignment."""
    if error.assignment_id is None or error.fence is None:
        return None
    return events.AssignmentFailed(
        peer.client_id,
        peer.incarnation,
        error.assignment_id,
        error.fence,
        error.code,
        error.message,
        error.scope,
        error.traceback,
        failed_step=error.failed_step,
    )


def unusable(peer: Peer, result: assignments.Result, error: FarmError) -> events.AssignmentFailed:
    """Return the failure of an assignment whose result the server can't use.

    NaN comes from the task's own code and will come everywhere; what the server lacks is nobody's fault; anything else
    may be that machine's.
    """
    scope = Scope.NOBODY if isinstance(error, NonFiniteUpdate) else Scope.ELSEWHERE
    here = (peer.client_id, peer.incarnation, result.assignment_id, result.fence)
    is_servers = isinstance(error, Unavailable)
    return events.AssignmentFailed(*here, error.code, error.message, scope, servers_fault=is_servers)
