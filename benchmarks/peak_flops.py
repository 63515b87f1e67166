"""Operations a second of a device: a data sheet's, or those of a timed matrix product.

    python -m benchmarks.peak_flops DEVICE

The product is timed in a process of its own. In that of a plain loop its matrices would have the C library keep more
memory from step to step afterwards (the dynamic threshold of mallopt(3)) than the loop is given without them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

import torch

PEAK_FLOPS: Final = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 products, by the makers' data sheets; on other devices a product is timed."""
_TIMED_SIDE: Final = 1024
_TIMED_PRODUCTS: Final = 5


def peak_flops(device: torch.device, environment: Mapping[str, str]) -> float:
    """Return the most that the device does a second, in a process with this environment where that is timed."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        for known, flops in PEAK_FLOPS.items():
            if known in name:
                return flops
    command = [sys.executable, "-m", "benchmarks.peak_flops", str(device)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def timed_flops(device: torch.device) -> float:
    """Return the operations a second of the fastest of some products."""
    side = _TIMED_SIDE if device.type == "cpu" else 8 * _TIMED_SIDE
    matrix = torch.rand(side, side, device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    best = float("inf")
    for _ in range(_TIMED_PRODUCTS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return float(2 * side**3 / best)


if __name__ == "__main__":
    print(timed_flops(torch.device(sys.argv[1])))
