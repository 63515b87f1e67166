"""Who submits from this machine: a name that nobody has proved."""

from __future__ import annotations

import getpass
import socket
from typing import Final

from protocol.terminal_text import one_line

MAX_SUBMITTER_CHARS: Final = 100
ANONYMOUS: Final = "anonymous"
"""Who submits from a machine that does not know its user."""


def submitter_here() -> str:
    """Return who submits: ``user@host``, as far as the machine knows them and the farm takes it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "anonymous"  # As in a container whose user has no entry.
    return one_line(f"{user}@{socket.gethostname()}")[:MAX_SUBMITTER_CHARS]
