"""How many files this process may open, and how many of them may be connections."""

from __future__ import annotations

import resource
from typing import Final

import structlog

from farm_server.edge.connections import ConnectionBook
from farm_server.environment.settings import ServerSettings

_log = structlog.get_logger(__name__)

_OWN_FILES: Final = 40
"""Ledger, blobs that are read and written, sockets of the loop: what the server needs for itself at the least."""
_OWN_SHARE: Final = 8
"""One file in so many is kept for that, where there are more."""


def raise_file_limit() -> None:
    """Let the process open as many files as it may at all: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        _log.warning("the limit of open files can't be raised", soft=soft, hard=hard, error=str(error))


def connections_within(files: int) -> int:
    """Return how many of so many open files may be connections."""
    return max(files - max(_OWN_FILES, files // _OWN_SHARE), 4)


def connection_book(settings: ServerSettings) -> ConnectionBook:
    """Return a book with the settings' bounds, as far as this process may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = settings.max_connections
    if files != resource.RLIM_INFINITY and (fewer := connections_within(files)) < most:
        most = fewer
        if fewer < settings.max_clients:
            _log.warning("this process may open few files: raise `ulimit -n`", files=files, connections=fewer)
    unknown = min(settings.max_unknown_connections, max(most // 2, 4))
    return ConnectionBook(most, unknown, min(settings.max_unknown_per_address, unknown))
