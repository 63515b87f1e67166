"""Numbers in sentences: how many of a thing, and sizes as people read them."""

from __future__ import annotations

from typing import Final

_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def counted(number: int, thing: str) -> str:
    """Return ``1 client``, ``2 clients``, ``1,234 clients``. ``thing`` is the word for one."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def sized(size_bytes: float) -> str:
    """Return a size such as ``1.5 GiB``."""
    size = float(size_bytes)
    for unit in _BYTE_UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_BYTE_UNITS[-1]}"
