"""Who may do what: two secrets, made once, carried as a bearer token or as the user name of HTTP Basic."""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from protocol.errors import Unauthorized

_TOKEN_BYTES = 18


class TokenRole(StrEnum):
    """What a token lets its bearer do."""

    VOLUNTEER = "volunteer"
    """Join the farm, fetch and upload blobs."""
    RESEARCHER = "researcher"
    """Everything that a volunteer may, and the whole HTTP API."""


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """The farm's secrets."""

    join: str
    farm: str

    def role_of(self, authorization: str | None) -> TokenRole:
        """Return what an ``Authorization`` header entitles to.

        Raises: Unauthorized if it is missing, malformed or names no token of this farm.
        """
        token = presented_token(authorization)
        if hmac.compare_digest(token, self.farm.encode()):
            return TokenRole.RESEARCHER
        if hmac.compare_digest(token, self.join.encode()):
            return TokenRole.VOLUNTEER
        raise Unauthorized("the token is not one of this farm's; copy the address that `farm-server up` printed")

    def require(self, least: TokenRole, authorization: str | None) -> None:
        """Let through who may do what ``least`` may. Raises: Unauthorized."""
        if self.role_of(authorization) is TokenRole.VOLUNTEER and least is TokenRole.RESEARCHER:
            raise Unauthorized(
                "this needs the farm token, not the join token; use the http:// address of `farm-server up`"
            )


def presented_token(authorization: str | None) -> bytes:
    """Return the token in an ``Authorization`` header, whatever characters that has.

    Raises: Unauthorized if there is none.
    """
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip().encode("latin-1", "replace")  # as it came: headers are read as Latin-1
    if scheme.lower() == "basic":
        try:
            user = base64.b64decode(value, validate=True).partition(b":")[0]
        except ValueError:  # not base64, or not even ASCII
            user = b""
        if user:
            return user
    raise Unauthorized("a token is needed; use the address that `farm-server up` printed, with its TOKEN@ part")


def load_or_create_token(path: Path) -> str:
    """Return the secret in ``path``, which is made (mode 0600) on the first call.

    Raises: Unauthorized if the file is empty. OSError if it can't be read or written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="ascii").strip()
        if not token:
            raise Unauthorized(f"{path} is empty; delete it to have a new token made") from None
        return token
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token
