"""The self-test: whether each device of this machine computes rightly, and how fast. Run once, in a process of its own.

    python -P -m farm_client.executor.selftest

Prints one JSON line (``Verdicts`` of the agent's self-test). The known answers are exact: small integers, whose
products and sums every floating-point unit must get right to the bit, checked against 64-bit integer arithmetic.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import numpy as np
import torch

from farm_client.executor.devices import (
    all_devices,
    device_class,
    device_memory_bytes,
    device_name,
    has_float64,
    wait_for,
)

_SIZE: Final = 256
_BENCH_SIZE: Final = 1024
_BENCH_SECONDS: Final = 0.3
_REPEATS: Final = 3
"""A device with failing memory often passes once."""


def main() -> None:
    """Test every device and print the verdicts."""
    verdicts = [_verdict(device) for device in all_devices()]
    sys.stdout.write(json.dumps({"torch_version": torch.__version__, "devices": verdicts}) + "\n")


def _verdict(device: torch.device) -> dict[str, Any]:
    about = {"device": str(device), "name": device_name(device), "device_class": device_class(device)}
    try:
        reason = _fault(device)
        gflops = 0.0 if reason else _gflops(device)
        memory_bytes = device_memory_bytes(device)
    except (RuntimeError, TypeError) as error:  # what torch raises for a broken or unsupported device, or format
        reason, gflops, memory_bytes = str(error).splitlines()[0], 0.0, 0
    return about | {"reason": reason, "gflops": gflops, "memory_bytes": memory_bytes}


def _fault(device: torch.device) -> str:
    """Return what the device got wrong; empty if all of its answers are right."""
    left = np.fromfunction(lambda i, j: (31 * i + 17 * j) % 7 - 3, (_SIZE, _SIZE), dtype=np.int64)
    right = np.fromfunction(lambda i, j: (13 * i + 29 * j) % 5 - 2, (_SIZE, _SIZE), dtype=np.int64)
    formats = (torch.float32, torch.float64) if has_float64(device) else (torch.float32,)
    for _ in range(_REPEATS):
        for dtype in formats:
            if not _multiplies_exactly(left, right, device, dtype):
                return f"a matrix product in {dtype} came out wrong"
        if not _differentiates_exactly(left, right, device, formats[-1]):
            return "the gradient of a least-squares loss came out wrong"
    return ""


def _multiplies_exactly(
    left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], device: torch.device, dtype: torch.dtype
) -> bool:
    a, b = (torch.from_numpy(side).to(dtype).to(device) for side in (left, right))
    return bool(np.array_equal((a @ b).cpu().numpy().astype(np.int64), left @ right))


def _differentiates_exactly(
    inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], device: torch.device, dtype: torch.dtype
) -> bool:
    """The gradient of sum((X w - y)^2) / 2 at w = 1 is X' (X 1 - y): whole numbers that float32 has, too."""
    x = torch.from_numpy(inputs).to(dtype).to(device)
    y = torch.from_numpy(targets[:, 0]).to(dtype).to(device)
    w = torch.ones(_SIZE, device=device, dtype=dtype, requires_grad=True)
    (((x @ w - y) ** 2).sum() / 2).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    expected = inputs.T @ (inputs.sum(axis=1) - targets[:, 0])
    assert w.grad is not None  # noqa: S101  backward has just set it
    return bool(np.array_equal(w.grad.cpu().numpy().astype(np.int64), expected))


def _gflops(device: torch.device) -> float:
    """Measure the rate of float32 matrix products, in 1e9 operations a second."""
    a = torch.ones(_BENCH_SIZE, _BENCH_SIZE, device=device)
    _product_of(a, device)
    started, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < _BENCH_SECONDS:
        _product_of(a, device)
        products += 1
    return round(products * 2 * _BENCH_SIZE**3 / elapsed / 1e9, 1)


def _product_of(a: torch.Tensor, device: torch.device) -> None:
    torch.matmul(a, a)
    wait_for(device)


if __name__ == "__main__":
    main()
