"""Which farm to join, and with which token: command line, then variables and a file, then the home's record.

The command line of a process is read by every user of the machine, so the token has other ways in. What was given on
it, or in the environment, is blotted out of what the system shows of this process before any task's code runs here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from farm_client.agent.connection.address import EXAMPLE, JoinAddress, parse_address
from farm_client.agent.errors import BadAddress, BadSettings
from farm_client.durable_file import write_durably
from protocol.frozen import Frozen

JOIN_URL_VARIABLE: Final = "FARM_JOIN_URL"
TOKEN_VARIABLE: Final = "FARM_TOKEN"  # noqa: S105  the name of a variable
SECRET_VARIABLES: Final = (JOIN_URL_VARIABLE, TOKEN_VARIABLE)
_LONGEST_TOKEN_BYTES: Final = 4096


class _Remembered(Frozen):
    """The farm that this home last joined. ``address`` is without its token."""

    address: str
    token: str | None = Field(default=None, repr=False)


def choose_farm(
    given: str | None,
    token_file: Path | None,
    remembered: Path,
    environ: MutableMapping[str, str] = os.environ,
) -> JoinAddress:
    """Return the farm to join: ``given`` before FARM_JOIN_URL before what is remembered.

    The token is the address's own; else that of ``token_file``, of FARM_TOKEN, or the remembered one of the same farm.
    Raises: BadAddress if nothing names a farm, or not a right one; BadSettings if a token cannot be taken.
    """
    known = _recall(remembered)
    text = given or environ.get(JOIN_URL_VARIABLE)
    if text:
        address = parse_address(text)
    elif known is not None:
        address = replace(known, token=None)
    else:
        raise BadAddress(f"no farm to join: {EXAMPLE}, or set {JOIN_URL_VARIABLE} to it")
    if address.token is not None:
        return address
    if token_file is not None:
        return replace(address, token=_read_token(token_file))
    if from_environment := environ.get(TOKEN_VARIABLE):
        return replace(address, token=_as_token(from_environment, TOKEN_VARIABLE))
    return replace(address, token=known.token) if known is not None and known.shown == address.shown else address


def remember_farm(path: Path, address: JoinAddress) -> None:
    """Keep the farm that has welcomed this machine, token and all, for its owner's eyes only.

    A disk that cannot keep it is put up with: then the next join must be told again.
    """
    if _recall(path) == address:
        return
    with suppress(OSError):
        write_durably(path, _Remembered(address=address.shown, token=address.token).model_dump_json())


def _recall(path: Path) -> JoinAddress | None:
    try:
        known = _Remembered.model_validate_json(path.read_bytes())
        return replace(parse_address(known.address), token=known.token)
    except (OSError, ValidationError, BadAddress):
        return None


def _read_token(path: Path) -> str:
    """Read a token's file. One of this user's own that others may read too is refused, as keys are.

    Somebody else's, such as a secret that a container is given, has the mode that they chose.
    """
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            # Windows has neither owners by number nor such modes: there a file is its user's by where it lies
            if hasattr(os, "geteuid") and about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) & 0o077:
                raise BadSettings(f"--token-file {path} can be read by others: run chmod 600 {path}")
            data = file.read(_LONGEST_TOKEN_BYTES + 1)
    except OSError as error:
        raise BadSettings(f"--token-file {path} cannot be read ({error.strerror})") from error
    if len(data) > _LONGEST_TOKEN_BYTES:
        raise BadSettings(f"--token-file {path} holds more than a token: at most {_LONGEST_TOKEN_BYTES} bytes")
    try:
        return _as_token(data.decode(), f"--token-file {path}")
    except UnicodeDecodeError:
        raise BadSettings(f"--token-file {path} is not text in UTF-8") from None


def _as_token(text: str, source: str) -> str:
    token = text.strip()
    if not token or not token.isprintable():
        raise BadSettings(f"{source} holds no token: it must be one line of printable characters")
    return token
