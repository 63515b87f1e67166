"""Transfers for callers without an event loop: each call runs one of its own until its transfers are done."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx

from farm_client.sdk.answers import explaining
from farm_client.sdk.api import FarmApi
from farm_client.sdk.interrupts import run_interruptible
from farm_client.transfer.carrier import CLIENT_HEADER, RETRY, TIMEOUT, Carrier
from protocol.errors import FarmError, Unavailable


class FarmRefuses(FarmError):
    """The farm takes no transfer now, by its own word."""


_NAME: Final = f"farm-{uuid4().hex[:12]}"
"""Of this process, for the farm's turns and limits."""
T = TypeVar("T")


def carry(api: FarmApi, work: Callable[[Carrier], Coroutine[Any, Any, T]]) -> T:
    """Do ``work`` with a way to the farm's blobs, from a thread without a running event loop.

    It is begun again while no farm answers and the API's patience lasts: what it has moved stays moved.
    Ctrl-C cancels it, so that it can keep what it has, and is raised when it has ended.
    Raises: FarmUnreachable where ``work`` raises Unavailable because no farm answers; what else ``work`` raises.
    """

    async def run() -> T:
        headers = {CLIENT_HEADER: _NAME}
        async with api.open_async(timeout=TIMEOUT, headers=headers) as http:
            with api.open_bulk(timeout=TIMEOUT, headers=headers) as bulk:
                return await work(Carrier(http, bulk, RETRY))

    def once() -> T:
        try:
            return run_interruptible(run())
        except Unavailable as error:
            if isinstance(error.__cause__, httpx.RequestError):
                with explaining(api.address):
                    raise error.__cause__ from None
            # The farm's own word, such as of a full disk: the tries of the transfer were all that it is worth.
            raise FarmRefuses(error.message) from error

    try:
        return api.patience.ask(once)
    except FarmRefuses as refused:
        raise Unavailable(refused.message) from refused.__cause__


class Forward:
    """Turns how many bytes are there so far into how many more there are; that a cut loses some is not told."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._told_bytes = 0

    def __call__(self, count: int) -> None:
        """Hear how many bytes are there."""
        if count > self._told_bytes:
            self._advance(count - self._told_bytes)
            self._told_bytes = count
