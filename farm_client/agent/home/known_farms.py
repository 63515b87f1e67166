"""The addresses that have welcomed this machine before: an odd answer of one of them is no mistyped address."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from farm_client.durable_file import write_durably

_MOST: Final = 64
_LONGEST_FILE_BYTES: Final = 64 * 1024


class KnownFarms:
    """The addresses, without tokens, the newest last. A file that can't be read or written is done without."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def __contains__(self, address: str) -> bool:
        return address in self._known

    def add(self, address: str) -> None:
        """Remember an address that has welcomed this machine, through a power cut too."""
        if address in self._known:
            return
        self._known = [*self._known, address][-_MOST:]
        with suppress(OSError):  # a full disk: it is known until the agent ends, and asked again then
            write_durably(self._path, json.dumps(self._known))


def _read(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            known = json.loads(file.read(_LONGEST_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    return [address for address in known if isinstance(address, str)][-_MOST:] if isinstance(known, list) else []
