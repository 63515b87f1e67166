"""Who is connected now, as which incarnation, and whose identity is proven."""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush
from itertools import count

from coordinator.allowance import Penalties
from coordinator.records import ClientRecord
from farm_server.clients.copied_homes import CopiedHomes
from farm_server.clients.given_work import GivenWork
from farm_server.clients.report_interval import ReportIntervals, SilenceLimit
from farm_server.clients.wire import Wire
from protocol.digests import digest_bytes
from protocol.errors import IdentityInUse, Unauthorized, Unavailable
from protocol.messages import Hello, Pace


@dataclass(slots=True)
class Peer:
    """One connected client. ``last_seen`` is when its last frame came, on the server's clock.

    ``silence_limit`` is how long it may be silent while it works, ``idle_silence_limit`` while it ``is_idle``: it has
    said itself that it holds nothing, and was offered nothing since.
    """

    client_id: str
    incarnation: int
    name: str
    wire: Wire
    last_seen: float
    silence_limit: SilenceLimit
    idle_silence_limit: SilenceLimit
    told: ReportIntervals
    """How often it was last asked to beat and report."""
    given: GivenWork = field(default_factory=GivenWork)
    is_idle: bool = False
    looked_at_next: float = math.inf
    """When it is due to be looked at: see ``SilenceWatch``."""

    def longest_silence(self, now: float) -> float:
        """Return how long it may be silent now, in seconds."""
        return (self.idle_silence_limit if self.is_idle else self.silence_limit).at(now)

    def is_concerned(self, intervals: ReportIntervals) -> bool:
        """Whether it must hear of other intervals now: who has no work keeps to one of them only."""
        if self.is_idle:
            return intervals.idle_heartbeat_seconds != self.told.idle_heartbeat_seconds
        return intervals != self.told

    def change_pace(self, intervals: ReportIntervals, now: float) -> None:
        """Ask it to beat at another pace, and expect that; one that can't be asked goes on as before."""
        if self.wire.is_over or not self.wire.session.may_send("pace"):
            return
        self.wire.send(Pace(**asdict(intervals)))
        self.told = intervals
        self.silence_limit.change(intervals.lost_after_seconds, now)
        self.idle_silence_limit.change(intervals.idle_lost_after_seconds, now)


class SilenceWatch:
    """Which clients were silent for too long; each is only looked at when it might have been.

    A peer that was heard meanwhile is due again when the silence that began then may not last longer.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Peer]] = []
        self._numbers = count()

    def expect(self, peer: Peer, now: float) -> None:
        """Look at the peer when it may not be silent any longer, if that is earlier than it would be."""
        at = peer.last_seen + peer.longest_silence(now)
        if at < peer.looked_at_next:
            peer.looked_at_next = at
            heappush(self._due, (at, next(self._numbers), peer))

    def silent(self, now: float) -> list[Peer]:
        """Return the peers that were silent for longer than they may be; each is due no more."""
        found = []
        while self._due and self._due[0][0] < now:
            at, _, peer = heappop(self._due)
            if at != peer.looked_at_next:
                continue  # it was looked at since, or is due earlier
            peer.looked_at_next = math.inf
            if peer.last_seen + peer.longest_silence(now) < now:  # as its due time was reckoned, rounding included
                found.append(peer)
            else:
                self.expect(peer, now)
        return found


@dataclass(frozen=True, slots=True)
class _Identity:
    """``secret_hash``: None once the client was removed, so that its next connection may show another secret."""

    secret_hash: str | None
    incarnation: int


class Registry:
    """Identities are trusted on first use: the first secret that a client id shows is the one it must show again."""

    def __init__(self, known: Iterable[ClientRecord], max_clients: int) -> None:
        self._identities = {c.client_id: _Identity(c.secret_hash, c.incarnation) for c in known}
        self._peers: dict[str, Peer] = {}
        self.copied_homes = CopiedHomes()
        self._max_clients = max_clients
        self._penalties = Penalties()
        self._working = 0
        self._intervals: ReportIntervals | None = None
        """What those who work were asked last; None: all are as they were welcomed."""
        self._watch = SilenceWatch()

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def admit(self, hello: Hello, wire: Wire, now: float, intervals: ReportIntervals) -> tuple[Peer, str, Peer | None]:
        """Return the new peer, its secret's hash, and the older connection that it replaces, if any.

        Raises: Unauthorized if another secret was shown for this client id before. IdentityInUse if another machine is
            connected under it. Unavailable if the farm is full, or if the client must wait because of what it sent.
        """
        secret_hash = digest_bytes(hello.client_secret.encode())
        known = self._identities.get(hello.client_id)
        if known and known.secret_hash is not None and not hmac.compare_digest(known.secret_hash, secret_hash):
            raise Unauthorized(
                f"client {hello.client_id} is known by another secret; start the agent with a fresh --home "
                "to join as a new client"
            )
        if (wait_seconds := self._penalties.wait_seconds(hello.client_id, now)) > 0:
            raise Unavailable(
                f"client {hello.client_id} sent more than a connection may; it can join again in {wait_seconds:.0f} s"
            )
        replaced = self._peers.get(hello.client_id)
        if (
            replaced is not None
            and not replaced.wire.is_over
            and self.copied_homes.returns(hello.client_id, hello.run_id)
        ):
            raise IdentityInUse
        if replaced is None and len(self._peers) >= self._max_clients:
            raise Unavailable(f"the farm is full: {self._max_clients} clients are connected; try again later")
        incarnation = known.incarnation + 1 if known else 1
        self._identities[hello.client_id] = _Identity(secret_hash, incarnation)
        name = hello.name or hello.resources.hostname or hello.client_id[:8]
        silence_limit, idle_silence_limit = (
            SilenceLimit(intervals.lost_after_seconds),
            SilenceLimit(intervals.idle_lost_after_seconds),
        )
        peer = Peer(hello.client_id, incarnation, name, wire, now, silence_limit, idle_silence_limit, intervals)
        self._working += replaced is None or replaced.is_idle
        self._peers[hello.client_id] = peer
        self._watch.expect(peer, now)
        self.copied_homes.joined(hello.client_id, hello.run_id)
        return peer, secret_hash, replaced

    def punish(self, client_id: str, now: float) -> None:
        """Let a client wait before it may join again, each time longer: its connection ended for what it sent."""
        self._penalties.punish(client_id, now)

    def remove(self, peer: Peer) -> bool:
        """Drop a connection; false if it was replaced or removed before."""
        if self._peers.get(peer.client_id) is not peer:
            return False
        del self._peers[peer.client_id]
        self._working -= not peer.is_idle
        return True

    def forget(self, client_id: str, incarnation: int) -> None:
        """Drop the secret of a client that was removed, unless it joined anew meanwhile.

        Its connections are counted on: what is still said of an earlier one must not be taken for a later one's.
        """
        known = self._identities.get(client_id)
        if known is not None and known.incarnation == incarnation:
            self._identities[client_id] = _Identity(None, incarnation)

    def find(self, client_id: str, incarnation: int) -> Peer | None:
        """Return the peer if that incarnation is the one that is connected."""
        peer = self._peers.get(client_id)
        return peer if peer and peer.incarnation == incarnation else None

    def forgive(self, seconds: float, now: float) -> None:
        """Leave a time in which the server itself stood still out of every client's silence."""
        for peer in self._peers.values():
            peer.last_seen = min(peer.last_seen + seconds, now)

    def is_connected(self, client_id: str, address: str) -> bool:
        """Whether that client is connected now, and from there."""
        peer = self._peers.get(client_id)
        return peer is not None and peer.wire.address == address

    def working(self) -> int:
        """Count the peers that beat as who works."""
        return self._working

    def change_pace(self, intervals: ReportIntervals, now: float) -> None:
        """Ask the clients that it concerns to beat at another pace; the others hear of it when they get work."""
        self._intervals = intervals
        for peer in self._peers.values():
            if peer.is_concerned(intervals):
                peer.change_pace(intervals, now)

    def beats(self, peer: Peer, *, holds_some: bool, now: float) -> None:
        """Note from its heartbeat whether it holds an assignment."""
        if holds_some:
            self.set_to_work(peer, now)
        elif not peer.is_idle:
            peer.is_idle = True
            self._working -= self._peers.get(peer.client_id) is peer

    def set_to_work(self, peer: Peer, now: float) -> None:
        """It is offered an assignment: from now on it beats as who works, and may be silent for less long."""
        if peer.is_idle:
            peer.is_idle, peer.last_seen = False, now
            self._working += self._peers.get(peer.client_id) is peer
            if self._intervals is not None and peer.is_concerned(self._intervals):
                peer.change_pace(self._intervals, now)
            self._watch.expect(peer, now)

    def silent(self, now: float) -> list[Peer]:
        """Return, once, the connected peers that were silent for longer than they may be."""
        return [p for p in self._watch.silent(now) if self._peers.get(p.client_id) is p]
