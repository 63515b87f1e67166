"""A way to the farm's blobs whose connections break in the middle of an upload, when they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Any

import httpx

from farm_client.transfer.carrier import Carrier, Interrupted
from protocol.composition import T, Wrap

Midway = Callable[[str], Awaitable[bool]]


async def _never(_url: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class CutCarrier(Carrier):
    """Asks ``midway``, by the upload's URL, after each piece of it has left whether the connection is to be cut."""

    midway: Midway = _never

    async def ask(self, method: str, url: str, **request: Any) -> httpx.Response:
        """Do as a carrier does; Interrupted, too, where it was cut."""
        if "content" in request:
            request["content"] = self._until_cut(url, request["content"])
        return await Carrier.ask(self, method, url, **request)

    async def _until_cut(self, url: str, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        piece = await anext(pieces, None)
        while piece is not None:
            yield piece
            piece = await anext(pieces, None)  # asked for the next, it has counted the one that left
            if await self.midway(url):
                raise Interrupted("the connection was cut on purpose")


def cut(midway: Midway) -> Wrap:
    """Return what puts such a carrier in a carrier's place."""

    def wrap(part: T, /) -> T:
        return cut_carrier(part, midway) if isinstance(part, Carrier) else part  # type: ignore[return-value]

    return wrap


def cut_carrier(carrier: Carrier, midway: Midway) -> CutCarrier:
    """Return a carrier that can be cut."""
    return CutCarrier(**{field.name: getattr(carrier, field.name) for field in fields(carrier)}, midway=midway)
