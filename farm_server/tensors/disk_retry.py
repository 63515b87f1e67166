"""Retries while the disk refuses: an operator makes room, and nothing that was computed is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from protocol.errors import Unavailable
from protocol.retry import RetryPolicy

T = TypeVar("T")


def insist(
    work: Callable[[], T], waits_for: Callable[[str], None], given_up: Callable[[], bool], retry: RetryPolicy
) -> T:
    """Do ``work`` again and again while it raises Unavailable; ``waits_for`` gets the reason. Blocks its thread.

    Raises: Unavailable once ``given_up`` says so; whatever else ``work`` raises.
    """
    failures = 0
    while True:
        try:
            return work()
        except Unavailable as error:
            waits_for(error.message)
            if given_up():
                raise
            failures += 1
            time.sleep(retry.bound_seconds(failures))
