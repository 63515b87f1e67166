"""What stands in a part's place: it breaks where it is told to, and is the part in everything else."""

from __future__ import annotations

from typing import Any


class Standing:
    """Passes on whatever it does not do itself."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)
