"""What clients are called where several may have one name: with the beginning of their id behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from farm_client.sdk.api import FarmApi

_ID_CHARS: Final = 6


class ClientNames:
    """Grows as clients become known; a name that two have is shown with an id from then on."""

    def __init__(self, known: Iterable[tuple[str, str]] = ()) -> None:
        """Take pairs of id and name."""
        self._ids: dict[str, set[str]] = defaultdict(set)
        for client_id, name in known:
            self._ids[name].add(client_id)

    def shown(self, client_id: str, name: str) -> str:
        """Return what to call a client: its name, ``name (4f1c2a)`` where others have it, or its id without one."""
        if not name:
            return client_id
        self._ids[name].add(client_id)
        return name if len(self._ids[name]) == 1 else f"{name} ({client_id[:_ID_CHARS]})"


def names_on(api: FarmApi) -> ClientNames:
    """Return the names of all clients that a farm knows."""
    return ClientNames((client.client_id, client.name) for client in api.clients())
