"""The owner's power limit on GPUs, and what theirs were before: put back when the agent ends, or at its next start.

A limit is the driver's and outlives every process. What it was is therefore on the disk before it is changed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from farm_client.durable_file import write_bytes_durably

_FORMER = TypeAdapter(dict[int, float])


class PowerCapable(Protocol):
    """Cards whose power can be limited. Watts by index."""

    def power_limits(self) -> dict[int, float]:
        """Read the limits."""

    def limit_power(self, index: int, watts: float) -> bool:
        """Set one; return whether that was permitted."""


class PowerLimit:
    """Limits all cards in use to the same power. ``file``: where their former limits are kept meanwhile."""

    def __init__(self, cards: PowerCapable, file: Path) -> None:
        self._cards = cards
        self._file = file
        self._former = _read(file)
        self.refused: tuple[int, ...] = ()
        """The cards whose limit this user may not set."""

    def limit(self, watts: float | None) -> None:
        """Limit the cards to so many watts, or to less where less was set before; None puts back what was before.

        Raises: OSError if it cannot be noted what was before, and nothing is changed.
        """
        if watts is None:
            self.restore()
            return
        found = self._cards.power_limits()
        former = {**found, **self._former}
        if former != self._former:
            write_bytes_durably(self._file, _FORMER.dump_json(former))
            self._former = former
        self.refused = tuple(index for index in found if not self._cards.limit_power(index, min(watts, former[index])))

    def restore(self) -> None:
        """Put back what was before; what is not permitted now is tried again at the next start."""
        left = {index: watts for index, watts in self._former.items() if not self._cards.limit_power(index, watts)}
        self.refused = ()
        if self._former and not left:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)
        self._former = left


def _read(file: Path) -> dict[int, float]:
    try:
        return _FORMER.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}
