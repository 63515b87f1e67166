"""Views of the uploads, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from farm_server.transfers.upload_queue import UploadQueue, Waiting
from protocol.rest_uploads import UploadView
from storage.partial_blob import PartialBlob, parse_name


@dataclass(frozen=True, slots=True)
class _Eye:
    """What the states of all uploads depend on."""

    queue: UploadQueue
    idle_seconds: float
    now: float

    def state_of(self, partial: PartialBlob, waiting: Waiting | None) -> str:
        if partial.is_checked:
            return "checking"
        if waiting is not None:
            return "waiting"
        is_active = self.queue.clients_of(partial.name) or partial.idle_seconds(self.now) <= self.idle_seconds
        return "receiving" if is_active else "interrupted"

    def begun(self, partial: PartialBlob, waiting: Waiting | None) -> UploadView:
        return UploadView(
            digest=partial.digest,
            size_bytes=partial.size_bytes,
            received_bytes=partial.received_bytes,
            state=self.state_of(partial, waiting),
            clients=waiting.clients if waiting is not None else self.queue.clients_of(partial.name),
            idle_seconds=partial.idle_seconds(self.now),
            ahead=waiting.ahead if waiting is not None else 0,
            reason=waiting.reason if waiting is not None else "",
        )

    def not_begun(self, waiting: Waiting) -> UploadView:
        digest, size_bytes = parse_name(waiting.upload)
        return UploadView(
            digest=digest,
            size_bytes=size_bytes,
            received_bytes=0,
            state="waiting",
            clients=waiting.clients,
            idle_seconds=self.now - waiting.came_at,
            ahead=waiting.ahead,
            reason=waiting.reason,
        )


def upload_views(
    partials: Iterable[PartialBlob], queue: UploadQueue, idle_seconds: float, now: float
) -> list[UploadView]:
    """Return those of which bytes are here, then those that only wait. ``now`` is in Unix seconds."""
    eye = _Eye(queue, idle_seconds, now)
    waiting = {w.upload: w for w in queue.waiting()}
    begun = [eye.begun(partial, waiting.pop(partial.name, None)) for partial in partials]
    return [*begun, *map(eye.not_begun, waiting.values())]
