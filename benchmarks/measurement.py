"""What a benchmark found, as a record that prints itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """The base of every benchmark's record; ``benchmark`` is its command's name."""

    benchmark: str

    def to_json(self) -> str:
        """Return one line of JSON, numbers to four digits."""
        return json.dumps(_rounded(asdict(self)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
