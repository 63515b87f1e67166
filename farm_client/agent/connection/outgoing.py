"""Messages to the farm: over the present connection, and, where they must not be lost, again over the next one."""

from __future__ import annotations

from farm_client.agent.connection.link import Link
from farm_client.agent.connection.unacknowledged import Report, Unacknowledged
from farm_client.transfer.link_speed import RecentMedian
from protocol.messages import HeldAssignment, Message


class Outgoing:
    """Sends without waiting. It outlives connections."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._unacknowledged = Unacknowledged()
        """What was said without a connection, or into one that broke before it arrived."""
        self._trips = RecentMedian()
        self._newest_trip = 0.0

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that what can be left out should be."""
        return self._link is not None and self._link.congested

    def measure_round_trip(self) -> float:
        """Take in how long the connection's newest ping took, and return the median of the latest; 0 without any."""
        newest = 0.0 if self._link is None else self._link.round_trip_seconds
        if newest != self._newest_trip:
            self._trips.add(newest)
        self._newest_trip = newest
        return self._trips.value

    def attach(self, link: Link) -> None:
        """Send over this connection, at first what is not acknowledged yet."""
        self._link = link
        for message in self._unacknowledged.messages():
            link.tell(message)
        self._unacknowledged.clear()

    def detach(self) -> None:
        """The connection is over."""
        if self._link is not None:
            for message in self._link.unacknowledged():
                self._unacknowledged.add(message)
        self._link = None

    def post(self, message: Message) -> None:
        """Say something that only matters to the connection there is."""
        if self._link is not None:
            self._link.post(message)

    def tell(self, message: Report) -> None:
        """Say something of an assignment, now or after the next welcome."""
        if self._link is not None:
            self._link.tell(message)
        else:
            self._unacknowledged.add(message)

    def ended(self) -> list[HeldAssignment]:
        """Name the assignments that ended without the farm's knowledge, for the next hello."""
        return [
            HeldAssignment(assignment_id=ending.assignment_id, fence=ending.fence)
            for ending in self._unacknowledged.endings()
            if ending.assignment_id is not None and ending.fence is not None
        ]
