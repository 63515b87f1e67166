"""The volunteer's agent, cache and executor; the researcher's SDK and the `farm` CLI.

For programs and notebooks: ``from farm_client import Farm`` (or ``AsyncFarm``), and ``read_recipe``; for code that
trains: ``log``, ``parts`` for scripts with a loop of their own, ``rows`` with the callbacks of ``hf`` and ``lightning``
for Trainers; ``load_failed`` for a step that failed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from farm_client import hf, lightning
    from farm_client.own_loop import LoopPart, attributes, config, parts
    from farm_client.sdk.async_farm import AsyncFarm
    from farm_client.sdk.failed_folder import load_failed
    from farm_client.sdk.farm import Farm
    from farm_client.sdk.recipe_files import read_recipe
    from farm_client.task import log
    from farm_client.trainer_parts import rows

__all__ = [
    "AsyncFarm",
    "Farm",
    "LoopPart",
    "attributes",
    "config",
    "hf",
    "lightning",
    "load_failed",
    "log",
    "parts",
    "read_recipe",
    "rows",
]

_HOMES: Final = {
    "AsyncFarm": "sdk.async_farm",
    "Farm": "sdk.farm",
    "LoopPart": "own_loop",
    "attributes": "own_loop",
    "config": "own_loop",
    "load_failed": "sdk.failed_folder",
    "log": "task",
    "parts": "own_loop",
    "read_recipe": "sdk.recipe_files",
    "rows": "trainer_parts",
}
_MODULES: Final = frozenset({"hf", "lightning"})
"""For those who have the library of that name; nothing else here imports it."""


def __getattr__(name: str) -> Any:
    """Import what is asked for: an agent must not load the SDK, nor a task's code either."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
