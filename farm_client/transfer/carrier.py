"""What every transfer to or from one farm shares: connections, limits, counters, and retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx
from pydantic import ValidationError

from farm_client.transfer.answers import IDENTITY, read_answer_async
from farm_client.transfer.link_speed import LinkSpeed
from farm_client.transfer.rates import RateLimit
from farm_client.transfer.tally import Tally
from protocol.errors import DigestMismatch, FarmError, NotFound, Unauthorized, Unavailable
from protocol.rest import ErrorBody
from protocol.retry import RetryPolicy

RETRY: Final = RetryPolicy(first_seconds=0.2, longest_seconds=10.0, tries=8)
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
"""Of one read or write, not of a transfer."""
CLIENT_HEADER: Final = "X-Farm-Client"
"""Who sends, by its own word: the farm shares its bandwidth and its turns fairly between these names."""

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Of a success that is no blob."""
_WORTH_ANOTHER_TRY: Final = frozenset(
    {httpx.codes.CONFLICT, httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT}
)
_SHOWN_CHARS: Final = 500
Meter = Callable[[int], None]
"""Called with how many bytes are there so far; after a cut it may be fewer than before."""
T = TypeVar("T")


def ignore_bytes(_count: int) -> None:
    """Nobody waits for the bytes of this transfer."""


class Interrupted(Exception):
    """A transfer ended early in a way that another try may mend."""


PASSING: Final = (httpx.HTTPError, httpx.StreamError, Interrupted)
"""What another try may mend."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """One way to a farm's ``/v1/blobs``.

    ``bulk`` is for the bodies of downloads, which threads read. Whoever made the two clients closes them; they know
    the farm's address and token.
    """

    http: httpx.AsyncClient
    bulk: httpx.Client
    retry: RetryPolicy = RETRY
    upload_rate: RateLimit = field(default_factory=RateLimit)
    download_rate: RateLimit = field(default_factory=RateLimit)
    tally: Tally = field(default_factory=Tally)
    upload_speed: LinkSpeed = field(default_factory=LinkSpeed)
    download_speed: LinkSpeed = field(default_factory=LinkSpeed)
    draw: Callable[[], float] = random.random
    """Draws the jitter of waits."""

    def __post_init__(self) -> None:
        """Tell the measurements of the limits."""
        for rate, speed in ((self.upload_rate, self.upload_speed), (self.download_rate, self.download_speed)):
            rate.on_wait = speed.held_back
            speed.limited_to(rate.bytes_per_second)

    def limit(self, upload: float | None, download: float | None) -> None:
        """Go on with other limits, in bytes a second, at once for what is under way too; None sets none."""
        for rate, speed, limit in (
            (self.upload_rate, self.upload_speed, upload),
            (self.download_rate, self.download_speed, download),
        ):
            if limit != rate.bytes_per_second:
                rate.change(limit)
                speed.limited_to(limit)

    async def ask(self, method: str, url: str, **request: Any) -> httpx.Response:
        """Send a request and return the answer, of which no more was read than is sane.

        Raises: httpx.HTTPError; Interrupted for whatever else a network brings; what giving the body raises.
        """
        request["headers"] = IDENTITY | request.get("headers", {})
        try:
            async with self.http.stream(method, url, **request) as response:
                return await read_answer_async(response, MAX_ANSWER_BYTES)
        except (*PASSING, FarmError, OSError):
            raise
        except Exception as error:  # the layers below say some things in their own words
            raise Interrupted(f"the connection broke ({error!r})") from error

    async def persist(self, attempt: Callable[[], Awaitable[None]], progress: Callable[[], int], failed: str) -> None:
        """Try until it succeeds. The tries are counted anew whenever ``progress`` has grown: a thin line gets there.

        Raises: Unavailable, with the last failure as its cause, when as many tries as allowed came no further.
        """
        failures, furthest = 0, progress()
        while True:
            try:
                await attempt()
            except PASSING as error:
                failures = failures + 1 if progress() <= furthest else 1
                furthest = max(furthest, progress())
                if not self.retry.allows(failures):
                    reason = str(error) or type(error).__name__
                    raise Unavailable(f"{failed} after {failures} tries: {reason}") from error
                await asyncio.sleep(self.retry.delay_seconds(failures, self.draw()))
            else:
                return


async def in_parallel(items: Iterable[T], at_once: int, work: Callable[[T], Awaitable[None]]) -> None:
    """Do ``work`` for each item, ``at_once`` at a time.

    When one is interrupted no other is begun, and those under way are finished first: what they move is moved.
    Raises: the first interruption, or the first other error at once.
    """
    failed: list[Exception] = []
    waiting = iter(items)

    async def take_items() -> None:
        for item in waiting:
            if failed:
                return
            try:
                await work(item)
            except PASSING as error:
                failed.append(error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(take_items())
    except ExceptionGroup as errors:
        failed = list(errors.exceptions)
    if failed:  # outside the handler: the error keeps the cause that it has
        raise failed[0]


async def check(response: httpx.Response, digest: str) -> None:
    """Raise for an error response: a retryable error where another try may mend it.

    A refusal that no farm words so is a proxy's.

    Raises: Interrupted, Unauthorized, NotFound, DigestMismatch; FarmError for any other refusal, in the farm's words.
    """
    if response.is_success:
        return
    status, reason = response.status_code, _reason(await response.aread())
    if reason is None:
        raise Interrupted(f"what answers in the farm's place answers with status {status}")
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise Unauthorized
    if response.is_server_error or status in _WORTH_ANOTHER_TRY:
        raise Interrupted(reason)
    if status == httpx.codes.NOT_FOUND:
        raise NotFound(f"the farm has no blob {digest[:12]}; the task may have ended")
    if status == httpx.codes.UNPROCESSABLE_ENTITY:
        raise DigestMismatch(reason)
    raise FarmError(f"the farm refused blob {digest[:12]}: {reason}")


def _reason(body: bytes) -> str | None:
    """Return the farm's reason, None if the answer is not the farm's."""
    try:
        return ErrorBody.model_validate_json(body).message[:_SHOWN_CHARS]
    except ValidationError:
        return None
