"""The volunteer's agent, cache and executor; the researcher's SDK and the `farm` CLI.

For programs and notebooks: ``from farm_client import Farm`` (or ``AsyncFarm``); for code that trains: ``log``,
and ``parts`` for scripts with a loop of their own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from farm_client.own_loop import LoopPart, attributes, config, parts
    from farm_client.sdk.async_farm import AsyncFarm
    from farm_client.sdk.farm import Farm
    from farm_client.task import log

__all__ = ["AsyncFarm", "Farm", "LoopPart", "attributes", "config", "log", "parts"]

_HOMES: Final = {
    "AsyncFarm": "sdk.async_farm",
    "Farm": "sdk.farm",
    "LoopPart": "own_loop",
    "attributes": "own_loop",
    "config": "own_loop",
    "log": "task",
    "parts": "own_loop",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: an agent must not load the SDK, nor a task's code either."""
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
