"""The owner's share of a GPU's memory, on a GPU that is imitated."""

from __future__ import annotations

import pytest
import torch

from farm_client.executor import process, vram
from farm_client.executor.vram import VRAM_VARIABLE, bound_vram


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    calls: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: calls.append((share, index))
    )
    return calls


@pytest.mark.parametrize(
    ("share", "device", "calls"),
    [("0.5", "cuda", [(0.5, 0), (0.5, 1)]), ("0.5", "cpu", []), (None, "cuda", [])],
)
def test_the_allocator_of_each_gpu_is_bounded(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[float, int]], share: str | None, device: str, calls: list[object]
) -> None:
    monkeypatch.delenv(VRAM_VARIABLE, raising=False)
    if share is not None:
        monkeypatch.setenv(VRAM_VARIABLE, share)
    bound_vram(torch.device(device))
    assert asked == calls


def test_agent_and_executor_mean_the_same_variable() -> None:
    assert process.VRAM_VARIABLE == vram.VRAM_VARIABLE
