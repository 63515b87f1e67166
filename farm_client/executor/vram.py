"""The owner's bound on a GPU's memory, set before a task's code can take any."""

from __future__ import annotations

import os
from typing import Final

import torch

VRAM_VARIABLE: Final = "AIFARM_VRAM_SHARE"


def bound_vram(device: torch.device) -> None:
    """Have torch's allocator refuse more than the owner's share of each GPU, as it refuses what the GPU has not."""
    share = os.environ.get(VRAM_VARIABLE)
    if share is None or device.type != "cuda":
        return
    for index in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(float(share), index)
