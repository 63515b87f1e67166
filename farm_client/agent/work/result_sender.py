"""How a finished result reaches the farm: a small update rides inside the message, a larger one is stored before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.link import Link
from farm_client.agent.home.outbox import Parcel
from farm_client.stage_clock import StageClock
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Result, WorkStage
from protocol.errors import FarmError, Unavailable


class ResultSender:
    """Sends over whatever connection there is; without one nothing leaves. Uploads outlive connections."""

    def __init__(self, transfers: Transfers, note: Callable[[str], None]) -> None:
        """``note`` gets a sentence on why an upload begins again."""
        self._transfers = transfers
        self._note = note
        self._link: Link | None = None
        self._sent_inside: set[str] = set()
        """The assignments whose updates have left inside a result, and are not settled."""

    def attach(self, link: Link, unsettled: Iterable[str]) -> None:
        """Use this connection from now on; ``unsettled`` are the assignments whose results may be sent again."""
        self._link = link
        self._sent_inside.intersection_update(unsettled)

    def detach(self) -> None:
        """The connection is over. Uploads that run go on."""
        self._link = None

    def rides(self, result: Result) -> bool:
        """Whether there is no update to store first: it has none, or one that fits inside, for this connection."""
        update = result.update
        if update is None:
            return True
        room_bytes = self._link.room_bytes if self._link is not None else 0
        return update.carried is not None and len(update.carried) <= room_bytes

    async def send(self, parcel: Parcel, listener: UploadListener) -> None:
        """Send a result, its update with it or before it; where the connection goes meanwhile, it has not left.

        Raises: FarmError and OSError if the farm refuses the update or its file is gone.
        """
        result, clock = parcel.result, StageClock()
        if self.rides(result) and result.update is not None and result.update.carried is not None:
            await self._transfers.pace_message(len(result.update.carried))
        if self.rides(result):  # the connection may be another one by now
            self._post(result)
        elif await self._store(parcel, listener):
            clock.ended(WorkStage.UPLOAD)
            bare, stages = result.update and result.update.bare(), result.stage_seconds | clock.seconds
            self._post(result.model_copy(update={"update": bare, "stage_seconds": stages}))

    def settled(self, assignment_id: str) -> None:
        """Note that the farm has acknowledged a result: what is sent for that assignment now is new."""
        self._sent_inside.discard(assignment_id)

    async def _store(self, parcel: Parcel, listener: UploadListener) -> bool:
        """Store the update at the farm, for as long as there is a connection; return whether it is there."""
        update = parcel.result.update
        content = parcel.path if update is None or update.carried is None else update.carried
        if update is None or content is None:
            raise FarmError(f"the update of {parcel.result.assignment_id} is neither in its result nor in a file")
        while self._link is not None:
            try:
                await self._transfers.upload(update.digest, content, listener)
            except Unavailable as error:
                self._note(f"{error.message}; trying again")
            else:
                return True
        return False

    def _post(self, result: Result) -> None:
        if self._link is None:
            return
        self._link.post(result)
        if result.update is None or result.update.carried is None:
            return
        size_bytes, tally = len(result.update.carried), self._transfers.tally
        tally.sent_bytes += size_bytes
        tally.sent_again_bytes += size_bytes if result.assignment_id in self._sent_inside else 0
        self._sent_inside.add(result.assignment_id)
