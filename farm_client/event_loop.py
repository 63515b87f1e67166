"""The event loop of a program that waits for much at once: uvloop, or asyncio's own where there is no uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a program to its end. Raises: what ``main`` raises."""
    try:
        import uvloop  # noqa: PLC0415 - Windows has none
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
