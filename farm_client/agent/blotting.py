"""Erases secrets of the command line and the environment from what the system shows of this process.

``ps`` shows a process's arguments to every user of the machine, and ``/proc`` its first environment to all processes of
the same user, the tasks' code among them; both are areas of the process's own memory. Linux only: elsewhere nothing
happens, and the documents say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Final

_FIRST_FIELD: Final = 3
"""The number of the first field after the program's name in ``/proc/self/stat``."""
_ARGUMENTS: Final = 48
"""The field that holds where the arguments begin; the next one has their end."""
_ENVIRONMENT: Final = 50


def blot_out(arguments: Iterable[str], variables: Iterable[str], environ: MutableMapping[str, str]) -> None:
    """Remove variables from the environment, and overwrite them and these arguments where the system shows them.

    Of an argument only the part between ``://`` and the last ``@`` is a secret: the rest stays readable in ``ps``.
    """
    addresses, names = [os.fsencode(text) for text in arguments], [os.fsencode(name) for name in variables]
    for name in variables:
        environ.pop(name, None)
    _rewrite(_ARGUMENTS, lambda text: without_token(text) if text in addresses else text)
    _rewrite(_ENVIRONMENT, lambda text: without_value(text) if text.partition(b"=")[0] in names else text)


def without_token(address: bytes) -> bytes:
    """Return an address with stars in the place of its token."""
    scheme, mark, rest = address.partition(b"://")
    token, at, place = rest.rpartition(b"@")
    return scheme + mark + b"*" * len(token) + at + place


def without_value(assignment: bytes) -> bytes:
    """Return ``NAME=VALUE`` with stars in the place of the value."""
    name, equals, value = assignment.partition(b"=")
    return name + equals + b"*" * len(value)


def _rewrite(field: int, change: Callable[[bytes], bytes]) -> None:
    """Change the NUL-terminated texts of an area of this process's memory; none may change its length."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(fields[number - _FIRST_FIELD]) for number in (field, field + 1))
        # through the file: a wrong address is an error there, and not the end of the process
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            shown = memory.read(end - start)
            memory.seek(start)
            memory.write(b"\0".join(change(text) for text in shown.split(b"\0")))
    except (OSError, ValueError, IndexError, OverflowError):
        return  # another system, or one that does not tell
