"""The agent's way to the farm's blobs: one set of connections, limits and counters for all of its transfers."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import httpx

from farm_client.agent.connection.address import JoinAddress
from farm_client.transfer.answers import client_options
from farm_client.transfer.bulk_transport import BulkTransport
from farm_client.transfer.carrier import CLIENT_HEADER, RETRY, TIMEOUT, Carrier, Meter
from farm_client.transfer.download import download
from farm_client.transfer.link_speed import LinkSpeed
from farm_client.transfer.partial_file import PartialFile
from farm_client.transfer.rates import RateLimit
from farm_client.transfer.tally import Tally
from farm_client.transfer.upload import UploadListener, upload
from protocol.composition import Wrap, as_built
from protocol.resources import LinkFigures
from protocol.retry import RetryPolicy
from protocol.wording import sized


class Transfers:
    """The way to the farm's ``/v1/blobs``. Use it as a context manager.

    Rates are bytes per second; None sets no limit.
    """

    def __init__(
        self,
        address: JoinAddress,
        retry: RetryPolicy = RETRY,
        *,
        client_id: str = "",
        upload_rate: float | None = None,
        download_rate: float | None = None,
        wrap: Wrap = as_built,
    ) -> None:
        """``wrap``: what stands in the carrier's place, for a test that breaks connections."""
        names = {CLIENT_HEADER: client_id} if client_id else {}
        options = client_options(address.http_url, address.headers | names)
        http = httpx.AsyncClient(**options, timeout=TIMEOUT)
        # the transport finds the proxy itself
        bulk = httpx.Client(**options | {"proxy": None}, timeout=TIMEOUT, transport=BulkTransport())
        self._carrier = wrap(Carrier(http, bulk, retry, RateLimit(upload_rate), RateLimit(download_rate)))

    @property
    def tally(self) -> Tally:
        """What moved so far, in bytes."""
        return self._carrier.tally

    def link_figures(self, round_trip_seconds: float) -> LinkFigures:
        """Return what the transfers showed of the link, and its round trip, which somebody else measures.

        To two digits, so that they seldom change.
        """
        return LinkFigures(
            download_bytes_per_second=_to_two_digits(self._carrier.download_speed.bytes_per_second),
            upload_bytes_per_second=_to_two_digits(self._carrier.upload_speed.bytes_per_second),
            round_trip_seconds=_to_two_digits(round_trip_seconds),
        )

    def limit(self, upload_rate: float | None, download_rate: float | None) -> None:
        """Go on with other limits, at once for what is under way too."""
        self._carrier.limit(upload_rate, download_rate)

    def rates(self) -> tuple[float | None, float | None]:
        """Return the limits of upload and download."""
        return self._carrier.upload_rate.bytes_per_second, self._carrier.download_rate.bytes_per_second

    def link_in_words(self) -> str:
        """Say how fast the link is, by what moved, and which of it is the owner's limit."""
        down, up = self._carrier.download_speed, self._carrier.upload_speed
        return f"{_speed('down', down, self._carrier.download_rate)}, {_speed('up', up, self._carrier.upload_rate)}"

    async def pace_message(self, update_bytes: int) -> None:
        """Wait until a message may leave that carries so much of an update inside."""
        await self._carrier.upload_rate.take(update_bytes)

    def came_in_message(self, carried_bytes: int) -> None:
        """Count bytes of blobs that a message of the farm's carried; nobody could hold them back."""
        self.tally.received_bytes += carried_bytes
        self._carrier.download_rate.charge(carried_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        self._carrier.bulk.close()
        await self._carrier.http.aclose()

    async def download(self, digest: str, partial: PartialFile, meter: Meter) -> None:
        """Fetch a blob: see ``transfer.download``."""
        await download(self._carrier, digest, partial, meter)

    async def upload(self, digest: str, content: Path | bytes, listener: UploadListener | None = None) -> None:
        """Store a blob at the farm: see ``transfer.upload``."""
        await upload(self._carrier, digest, content, listener)


def _speed(way: str, speed: LinkSpeed, rate: RateLimit) -> str:
    link = f"{sized(speed.link_bytes_per_second)}/s" if speed.link_bytes_per_second else "not measured"
    limit = rate.bytes_per_second
    return f"{way} {link}" + ("" if limit is None else f" (limited by you to {sized(limit)}/s)")


def _to_two_digits(value: float) -> float:
    return float(f"{value:.2g}")
