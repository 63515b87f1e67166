"""The owner's bound on a GPU's memory, set before a task's code can take any."""

from __future__ import annotations

import os
from typing import Final

import torch

VRAM_VARIABLE: Final = "AIFARM_VRAM_SHARE"


def bound_vram(device: torch.device) -> None:
    """Have torch's allocator refuse more than the owner's share of each GPU, as it refuses what the GPU has not."""
    if VRAM_VARIABLE not in os.environ or device.type != "cuda":
        return
    for index in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(vram_share(), index)


def vram_share() -> float:
    """Return which part of a GPU's memory the owner lends, from 0 to 1."""
    return float(os.environ.get(VRAM_VARIABLE, "1"))
