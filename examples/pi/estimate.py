"""Estimates pi on many machines: each item is one simulation, which draws its own random numbers."""

from __future__ import annotations

import random


def map_item(item: int, config: dict) -> dict:
    """Throw darts at a square, and return how many are in the circle. A repeat of the item throws the same darts."""
    darts = int(config.get("darts", 10_000))
    hits = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(darts))
    return {"item": item, "darts": darts, "hits": hits}
