"""From an HTTP response, or the lack of one, to a value or a typed error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from farm_client.proxies import way_to
from farm_client.sdk.config import FarmAddress
from farm_client.sdk.errors import FarmUnreachable
from protocol.errors import FarmError, Unauthorized
from protocol.rest import ErrorBody

T = TypeVar("T")


def _with_descendants(root: type[FarmError]) -> Iterator[type[FarmError]]:
    yield root
    for child in root.__subclasses__():
        yield from _with_descendants(child)


ERRORS_BY_CODE: Final = {error.code: error for error in _with_descendants(FarmError) if error is not FarmUnreachable}


@contextmanager
def explaining(address: FarmAddress) -> Iterator[None]:
    """Turn what httpx raises inside the block into FarmUnreachable, in one line that says what to do."""
    try:
        yield
    except httpx.ConnectError as error:
        raise FarmUnreachable(
            f"no farm answers at {address.url}{way_to(address.url)} (from {address.source}): "
            "is `farm-server up` running there, and is the address right?"
        ) from error
    except httpx.TimeoutException as error:
        raise FarmUnreachable(
            f"the farm at {address.url} did not answer in time{way_to(address.url)}: "
            "try again, or look at `farm-server status` there"
        ) from error
    except (httpx.RequestError, httpx.StreamError) as error:
        raise FarmUnreachable(
            f"the connection to {address.url} broke ({str(error) or type(error).__name__}): "
            "try again; if it goes on, check the address"
        ) from error


def raise_for_error(response: httpx.Response, address: FarmAddress) -> None:
    """Raise the error that the farm answered, if it answered one.

    Raises: the class of ``protocol.errors`` with the answered code; Unauthorized for a refused token;
        FarmUnreachable if the answer is not a farm's.
    """
    if response.is_success:
        return
    if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise Unauthorized(
            f"the farm at {address.url} refuses the token (from {address.source}): "
            "use the http:// address with the farm token that `farm-server up` printed"
        )
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValidationError as error:
        raise _not_a_farm(response, address) from error
    raise ERRORS_BY_CODE.get(body.code, FarmError)(body.message)


def parse(adapter: TypeAdapter[T], response: httpx.Response, address: FarmAddress) -> T:
    """Return the answer's JSON body as the type that it must have.

    Raises: what ``raise_for_error`` raises; FarmUnreachable if the body is not of that type.
    """
    raise_for_error(response, address)
    try:
        return adapter.validate_json(response.content)
    except ValidationError as error:
        raise _not_a_farm(response, address) from error


def _not_a_farm(response: httpx.Response, address: FarmAddress) -> FarmUnreachable:
    return FarmUnreachable(
        f"what answers at {address.url} (from {address.source}) is not a farm that this version understands "
        f"(HTTP {response.status_code} to {response.request.url.path}): check the address and `farm --version`"
    )
