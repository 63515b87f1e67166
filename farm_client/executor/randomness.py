"""Every generator that a task's code may draw from, seeded alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from farm_client.executor.devices import generator_states, seed_device, set_generator_states


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch, numpy's legacy generator and ``random``, so that a repeated assignment gives the same update.

    Not by ``torch.manual_seed``: where CUDA is not in use it formats a traceback for later, a third of a tiny round.
    """
    torch.default_generator.manual_seed(seed)
    seed_device(seed, device)
    np.random.seed(seed % 2**32)  # the legacy generator: the researcher's code may use it
    random.seed(seed)


@contextmanager
def apart(seed: int, device: torch.device) -> Iterator[None]:
    """Run code that may draw numbers, seeded for itself; who draws afterwards does not feel that it ran.

    What is read once and kept must not change the numbers of the assignment in which it happens to be read.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    of_device = generator_states(device)
    seed_everything(seed, device)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        set_generator_states(of_device, device)


def random_states(device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the states of all generators: their tensors by name, and the plain values that belong to them."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # legacy=True gives this tuple
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
        **generator_states(device),
    }
    numpy_values = [str(kind), int(position), int(has_gauss), float(cached)]
    return tensors, {"python": [version, gauss], "numpy": numpy_values}


def set_random_states(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], device: torch.device) -> None:
    """Let all generators go on as ``random_states`` found them. Raises: KeyError, ValueError, RuntimeError."""
    version, gauss = values["python"]
    kind, position, has_gauss, cached = values["numpy"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    set_generator_states(dict(tensors), device)
