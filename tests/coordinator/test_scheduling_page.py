"""docs/reference/scheduling.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from coordinator.scoring import WEIGHTS
from coordinator.settings import CoordinatorSettings
from protocol.limits import LOST_AFTER_SECONDS
from protocol.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs/reference/scheduling.md").read_text()


def test_the_weights_are_the_codes() -> None:
    table = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", PAGE, flags=re.MULTILINE))
    assert {name: float(weight) for name, weight in table.items()} == WEIGHTS


def test_the_times_are_the_codes() -> None:
    settings, recipe = CoordinatorSettings(), Recipe(rounds=1)
    for sentence in (
        f"stays with a task for {settings.quantum_seconds:.0f} s",
        f"kept idle for its task for {settings.keep_seconds:.0f} s at most",
        f"| an offer without an answer | {settings.offer_seconds:.0f} s |",
        f"| heartbeats that tell of nothing new | {settings.stall_seconds:.0f} s |",
        f"{settings.deadline_grace_seconds:.0f} s + {settings.deadline_factor:.0f} x the expected time",
        f"| a client without any sign of life | {LOST_AFTER_SECONDS:.0f} s |",
        f"`gather_seconds` ({recipe.gather_seconds:.0f} s)",
        f"up to {settings.desertion_retry.first_seconds:.0f} s, doubled each time up to "
        f"{settings.desertion_retry.longest_seconds:.0f} s, with full jitter",
        f"at most {settings.warm_up_seconds:.0f} s | the step opens without it",
        f"`longest_round_seconds` ({recipe.longest_round_seconds:.0f} s)",
        f"of memory for {settings.memory_retry.first_seconds:.0f} s",
        f"must see it for {settings.stranger_seconds:.0f} s",
        f"left alone for {settings.client_retry.first_seconds:.0f} s",
    ):
        assert sentence in PAGE, sentence
