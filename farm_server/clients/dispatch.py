"""Sends the coordinator's messages to the clients that they are for."""

from __future__ import annotations

from coordinator.commands import Send
from farm_server.clients.registry import Peer, Registry
from farm_server.control.placements import Placements
from farm_server.environment.clock import Clock
from farm_server.environment.faults import armed, reach
from farm_server.transfers.inline_blobs import InlineBlobs
from protocol.errors import FarmError, OutOfOrder
from protocol.faults import Fault
from protocol.messages import Ack, Assign, Kind, Message


class Dispatch:
    """Never waits: each connection has a queue of its own."""

    def __init__(self, registry: Registry, placements: Placements, inline: InlineBlobs, clock: Clock) -> None:
        self._registry = registry
        self._placements = placements
        self._inline = inline
        self._clock = clock

    def send(self, command: Send) -> None:
        """Send a message, if that incarnation of the client is still connected."""
        peer = self._registry.find(command.client_id, command.incarnation)
        if peer is None or peer.wire.is_over:
            return
        message = command.message
        if isinstance(message, Assign):
            self._placements.add(peer.client_id, message)
            self._registry.set_to_work(peer, self._clock.now())
            filled = message if command.holds_weights else self._inline.filled(message, peer.wire.inline_bytes)
            self._say(peer, filled, message)
        elif isinstance(message, Ack) and self._is_lost(message):
            peer.wire.end("an acknowledgement was lost on purpose")
        else:
            self._say(peer, message)

    def _say(self, peer: Peer, *ways: Message) -> None:
        """Send a message in the first of these ways that fits into a frame."""
        problem = ""
        for message in ways:
            try:
                peer.wire.send(message)
            except OutOfOrder:
                return  # it said goodbye a moment ago
            except FarmError as error:
                problem = error.message
            else:
                return
        peer.wire.end(f"a message for it can't be sent: {problem}")

    def _is_lost(self, ack: Ack) -> bool:
        """Come to the places of faults around an acknowledgement; true if it is lost there."""
        placement = self._placements.find_any(ack.assignment_id) if armed() else None
        if placement is None or placement.kind is not Kind.TRAIN:
            return False
        after_commit = ack.counted and reach(Fault.SERVER_AFTER_COMMIT, placement.round)
        return after_commit or reach(Fault.SERVER_REPLY_LOST, placement.round)
