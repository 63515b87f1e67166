"""Numbers and names in sentences: how many of a thing, sizes as people read them, names of clients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

_ID_CHARS: Final = 6
_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_FLOP_UNITS: Final = ("FLOP", *(f"{prefix}FLOP" for prefix in "kMGTPEZY"))
_MOST_BYTES: Final = 2**63
"""An integer may be anything, and a float can't."""


def counted(number: int, thing: str) -> str:
    """Return ``1 client``, ``2 clients``, ``1,234 clients``. ``thing`` is the word for one."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def sized(size_bytes: float) -> str:
    """Return a size such as ``1.5 GiB``."""
    size = float(min(size_bytes, _MOST_BYTES))
    for unit in _BYTE_UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_BYTE_UNITS[-1]}"


def flops_text(flops: int) -> str:
    """Return a number of floating point operations such as ``1.2 PFLOP``; a dash where none are known."""
    if flops <= 0:
        return "-"
    power = min((len(str(flops)) - 1) // 3, len(_FLOP_UNITS) - 1)
    tenths = round(flops / 10 ** (3 * power) * 10)
    if tenths >= 10_000 and power + 1 < len(_FLOP_UNITS):
        tenths, power = 10, power + 1
    return f"{tenths / 10:,.1f} {_FLOP_UNITS[power]}" if power else f"{flops} FLOP"


class ClientNames:
    """What clients are called: a name that two have is shown with an id, from when both are known."""

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
