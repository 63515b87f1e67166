"""Protocol versions and how one is agreed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocol.errors import VersionMismatch

SUPPORTED: Final[tuple[int, ...]] = (1, 2)
BATCHES_SINCE: Final = 2
"""From this version on a frame may hold several messages, the server may set the pace, and say what to fetch."""
FROZEN_APART: Final = "frozen_apart"
"""A feature of clients: they take a task's frozen tensors as a file of their own, which versions are without then."""

CARRIED_STATE: Final = "carried_state"
"""Likewise: they take the inner optimizer's state with a version, and send it back in an update."""

BASE_FOLDER: Final = "base_folder"
"""Likewise: they give a task's code the folder of files that it starts from."""

STEP_RULES: Final = "step_rules"
"""Likewise: in their local steps they clip gradients and follow a task's scheduler."""

NAMED_SCHEDULE: Final = "named_schedule"
"""Likewise: they follow a schedule that the recipe names."""

CONTROL_VARIATES: Final = "control_variates"
"""Likewise: they correct local gradients by SCAFFOLD's control variates, and keep their own."""

SPLIT_VARIATES: Final = "split_variates"
"""Likewise, where rows are split: those of virtual clients come and go with the version."""
FRAGMENTS: Final = "fragments"
"""Likewise: they tell one fragment of their model in each round."""

PROXIMAL_TERM: Final = "proximal_term"
"""Likewise: they add the proximal term of FedProx to their local gradients."""

QUANTIZED_BASE: Final = "quantized_base"
"""Likewise: they keep what quantized layers have beside their weights with the frozen tensors."""

EPOCH_END: Final = "epoch_end"
"""Likewise: they run a task's ``on_epoch_end`` and store the files that it leaves."""

SEQUENTIAL_ORDER: Final = "sequential_order"
"""Likewise: they read a task's rows in order, and hand on what its code carries from batch to batch."""

TASK_LENGTH: Final = "task_length"
"""Likewise: they tell a task's code how long the task is."""

TASK_ENVIRONMENT: Final = "task_environment"
"""Likewise: they run a task's code with the packages of its lock, if they have them or may install them."""

SECAGG: Final = "secagg"
"""Likewise: they agree on masks with the other clients of a round, and mask their updates."""

MAP_ITEMS: Final = "map_items"
"""Likewise: they run a map's function over items, and send back its outputs."""


def negotiate(offered: Iterable[int], supported: Iterable[int] = SUPPORTED) -> int:
    """Return the highest version that both sides support.

    Raises: VersionMismatch if there is none, naming both sides' versions.
    """
    mine, theirs = set(supported), set(offered)
    common = mine & theirs
    if not common:
        offer = sorted(theirs) or "none"
        raise VersionMismatch(f"the client speaks protocol {offer} and the server {sorted(mine)}; upgrade the older")
    return max(common)
