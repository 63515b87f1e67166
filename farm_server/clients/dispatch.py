"""Sends the coordinator's messages to the clients that they are for."""

from __future__ import annotations

from coordinator.commands import Send
from farm_server.clients.registry import Peer, Registry
from farm_server.environment.clock import Clock
from farm_server.transfers.memory_blobs import MemoryBlobs
from protocol.assignments import Assign
from protocol.errors import FarmError, OutOfOrder
from protocol.messages import Message


class Dispatch:
    """Never waits: each connection has a queue of its own."""

    def __init__(self, registry: Registry, memory: MemoryBlobs, clock: Clock) -> None:
        self._registry = registry
        self._memory = memory
        self._clock = clock

    def send(self, command: Send) -> None:
        """Send a message, if that incarnation of the client is still connected."""
        peer = self._registry.find(command.client_id, command.incarnation)
        if peer is None or peer.wire.is_over:
            return
        message = command.message
        if isinstance(message, Assign):
            peer.given.add(message)
            self._registry.set_to_work(peer, self._clock.now())
            fill = self._memory.with_state if command.holds_weights else self._memory.filled
            filled = fill(message, peer.wire.room_bytes)
            self._say(peer, filled, message)
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
