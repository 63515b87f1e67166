"""SCAFFOLD in a recipe: what it brings with it, and what it does not go with. ``farm_client.executor`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_control_variates(record: Any) -> Any:
    """Return a recipe's record that carries its inner state, unless it says otherwise, where it has control variates.

    The server's control variate travels with the version, as what an optimizer keeps would.
    """
    if isinstance(record, Mapping) and record.get("scaffold_clients") and "inner_state" not in record:
        return {**record, "inner_state": "carried"}
    return record
