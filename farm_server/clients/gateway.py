"""The WebSocket of ``/v1/farm``: admits clients, keeps their connections, and drops those that fall silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from coordinator.commands import DropClient
from coordinator.events import ClientConnected, ClientLost, ClientThrottled, Event, IdentityShared
from farm_server.clients.reception import Reception
from farm_server.clients.registry import Peer, Registry
from farm_server.clients.report_interval import Pacer, ReportIntervals, ServerLoad
from farm_server.clients.wire import Wire, WireLimits
from farm_server.edge.admission import Admission
from farm_server.environment.clock import Clock
from farm_server.environment.settings import ServerSettings
from farm_server.observability.telemetry import Telemetry
from protocol.errors import FarmError, IdentityInUse, OutOfOrder
from protocol.limits import PROGRESS_SECONDS
from protocol.messages import Bye, Drain, Error, Heartbeat, Hello, Scope, Welcome
from protocol.rest import PaceView
from protocol.session import Session, Side

_log = structlog.get_logger(__name__)
_TWINS = "two machines use this client's identity: its home folder was copied"
_PERHAPS_TWINS = (
    "its connection is replaced again and again: two machines use its identity, or its network breaks often"
)
_WAY_OUT = "start one of them with `farm-client join --new-identity ADDRESS`"


class Gateway:
    """One coroutine for each connection that was let in."""

    def __init__(
        self,
        *,
        settings: ServerSettings,
        admission: Admission,
        registry: Registry,
        reception: Reception,
        post: Callable[[Event], None],
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._registry = registry
        self._reception = reception
        self._post = post
        self._telemetry = telemetry
        self._clock = clock
        self._pacer = Pacer(_usual_intervals(settings))
        self._draining: str | None = None

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection, from its handshake to its end."""
        await websocket.accept()
        session = Session(Side.SERVER, self._settings.max_frame_bytes)
        limits = WireLimits(self._settings.max_outbox_bytes, self._settings.room_bytes)
        wire = Wire(websocket, session, limits, self._telemetry.wire)
        try:
            if (peer := await self._greet(wire)) is not None:
                await self._converse(peer)
        finally:
            await wire.close()

    def sweep(self, late_seconds: float) -> None:
        """Lose the clients that were silent for too long.

        ``late_seconds``: how late the server is to look. It did not listen meanwhile either, so that counts as silence
        of nobody: what they said may still wait in the sockets.
        """
        now = self._clock.now()
        if late_seconds > 0:
            self._registry.forgive(late_seconds, now)
        for peer in self._registry.silent(now):
            peer.wire.end(f"silent for more than {peer.longest_silence(now):g} s")

    def keep_pace(self, lag_seconds: float, backlog: int) -> None:
        """Adapt how often clients report to the server's load: how late its loop is, and what waits."""
        now = self._clock.now()
        load = ServerLoad(len(self._registry), self._registry.working(), lag_seconds, backlog)
        if not self._pacer.look(load, now):
            return
        intervals = self._pacer.intervals
        _log.info("clients are told another pace", reason=self._pacer.reason, **asdict(intervals))
        self._registry.change_pace(intervals, now)

    def pace_view(self) -> PaceView:
        """Return how often clients report now, and why."""
        return PaceView(**asdict(self._pacer.intervals), reason=self._pacer.reason)

    async def drain(self, reason: str) -> None:
        """Ask every client to finish or hand back, wait a while for them to leave, and close the rest."""
        self._draining = reason
        for peer in self._registry:
            if peer.wire.session.may_send("drain"):
                peer.wire.send(Drain(reason=reason))
        if leaving := [peer.wire.over for peer in self._registry]:
            await asyncio.wait(leaving, timeout=self._settings.drain_seconds)
        for peer in self._registry:
            self.dismiss(peer, reason)

    def dismiss(self, peer: Peer, reason: str) -> None:
        """Send ``Bye`` to a client and close."""
        if peer.wire.session.may_send("bye"):
            peer.wire.send(Bye(reason=reason))
        peer.wire.end(reason)

    def drop_client(self, command: DropClient) -> None:
        """A client was removed: drop its secret, and send ``Bye`` if that connection is still open."""
        self._registry.forget(command.client_id, command.incarnation)
        if (peer := self._registry.find(command.client_id, command.incarnation)) is not None:
            self.dismiss(peer, command.reason)

    async def _greet(self, wire: Wire) -> Peer | None:
        """Read the hello and welcome the client; None if that came to nothing."""
        self._admission.begins()
        try:
            if (hello := await self._hello(wire)) is None:
                return None
            began_at = time.perf_counter()
            peer = self._admit(hello, wire)
            self._admission.cost(time.perf_counter() - began_at)
            return peer
        finally:
            self._admission.ends()

    async def _hello(self, wire: Wire) -> Hello | None:
        """Wait for the introduction; None if the connection ended before it."""
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                while not wire.session.closed:
                    for message in await wire.receive():
                        if isinstance(message, Hello):
                            return message
                    await wire.flush()
        except TimeoutError:
            wire.session.fail(OutOfOrder(f"no hello came within {self._settings.hello_seconds:g} s"))
        except WebSocketDisconnect:
            pass  # it left before it said who it is
        return None

    def _admit(self, hello: Hello, wire: Wire) -> Peer | None:
        """Welcome a client, or refuse it with a fatal error."""
        try:
            peer, secret_hash, replaced = self._registry.admit(hello, wire, self._clock.now(), self._pacer.intervals)
        except IdentityInUse as error:
            self._tell_of_copies(hello.client_id, _TWINS)
            wire.session.fail(error)
            return None
        except FarmError as error:
            _log.warning("a client is refused", client=hello.client_id, code=error.code, error=error.message)
            wire.session.fail(error)
            return None
        is_suspected = replaced is not None and self._replace(replaced)
        wire.send(self._welcome(peer))
        self._telemetry.clients_online.set(len(self._registry))
        _log.info("client joined", client=peer.name, client_id=peer.client_id, incarnation=peer.incarnation)
        self._post(ClientConnected(hello, secret_hash, peer.incarnation))
        if is_suspected:
            self._tell_of_copies(peer.client_id, _PERHAPS_TWINS)
        if self._draining is not None:
            wire.send(Drain(reason=self._draining))
        return peer

    def _replace(self, former: Peer) -> bool:
        """Take leave of a connection whose client has a newer one: somebody who hears of it knows that there are two.

        Returns whether this client is suspected of it, because that happened once too often.
        """
        now = self._clock.now()
        answered = not former.wire.is_over and now - former.last_seen <= 2 * self._pacer.intervals.heartbeat_seconds
        if former.wire.session.may_send("bye"):
            former.wire.send(Bye(reason="another connection of this client took its place", replaced=True))
        self._lose(former, "replaced by a newer connection of the same client")
        return answered and self._registry.copied_homes.replaced(former.client_id, now)

    def _tell_of_copies(self, client_id: str, what: str) -> None:
        """Say it once for each client: in the log, in the farm's events, and to the one that is connected."""
        if not self._registry.copied_homes.is_news(client_id):
            return
        _log.warning(what, client_id=client_id)
        for peer in self._registry:
            if peer.client_id == client_id:
                self._post(IdentityShared(client_id, peer.incarnation, what))
                if peer.wire.session.may_send("error"):
                    peer.wire.send(Error(code=IdentityInUse.code, message=f"{what}; {_WAY_OUT}", scope=Scope.HERE))

    def _welcome(self, peer: Peer) -> Welcome:
        return Welcome(
            version=peer.wire.session.version or 0,
            incarnation=peer.incarnation,
            server=self._settings.name,
            max_frame_bytes=self._settings.max_frame_bytes,
            inline_bytes=self._settings.room_bytes,
            **asdict(self._pacer.intervals),
        )

    async def _converse(self, peer: Peer) -> None:
        reason = "the server failed"
        try:
            reason = await peer.wire.converse(self._read(peer))
        finally:
            if peer.wire.sent_too_much:
                self._registry.punish(peer.client_id, self._clock.now())
            if self._registry.remove(peer):
                self._lose(peer, reason)

    async def _read(self, peer: Peer) -> None:
        wire, was_flooded = peer.wire, False
        while not wire.session.closed:
            messages = await wire.receive()
            peer.last_seen = self._clock.now()
            if wire.is_flooded is not was_flooded:
                was_flooded = wire.is_flooded
                self._post(ClientThrottled(peer.client_id, peer.incarnation, was_flooded))
            for message in messages:
                if isinstance(message, Heartbeat):
                    self._registry.beats(peer, holds_some=bool(message.assignments), now=peer.last_seen)
                await self._reception.take(peer, message)
        wire.end(f"it broke the protocol: {wire.session.error.message}" if wire.session.error else "it left")

    def _lose(self, peer: Peer, reason: str) -> None:
        _log.info("client lost", client=peer.name, client_id=peer.client_id, reason=reason)
        peer.wire.end(reason)
        self._telemetry.clients_online.set(len(self._registry))
        self._post(ClientLost(peer.client_id, peer.incarnation, reason))


def _usual_intervals(settings: ServerSettings) -> ReportIntervals:
    beat = settings.heartbeat_seconds
    return ReportIntervals(beat, PROGRESS_SECONDS, settings.lost_after_seconds, idle_heartbeat_seconds=beat)
