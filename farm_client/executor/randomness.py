"""Every generator that a task's code may draw from, seeded alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch, numpy's legacy generator and ``random``, so that a repeated assignment gives the same update.

    Not by ``torch.manual_seed``: where CUDA is not in use it formats a traceback for later, a third of a tiny round.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # the legacy generator: the researcher's code may use it
    random.seed(seed)


@contextmanager
def apart(seed: int, device: torch.device) -> Iterator[None]:
    """Run code that may draw numbers, seeded for itself; who draws afterwards does not feel that it ran.

    What is read once and kept must not change the numbers of the assignment in which it happens to be read.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else None
    seed_everything(seed, device)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
