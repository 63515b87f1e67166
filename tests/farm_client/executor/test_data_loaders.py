"""Data loaders with workers, where a sandbox has no semaphores: the same batches, loaded here."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from farm_client.executor.data_loaders import NOTE, has_semaphores, load_without_workers


class Pids(Dataset[torch.Tensor]):
    """Rows that say by which process they were read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, os.getpid()])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(DataLoader, "_get_iterator", DataLoader._get_iterator)  # put back after the test
    lines: list[str] = []
    load_without_workers(lines.append)
    return lines


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"timeout": 5, "prefetch_factor": 3}])
def test_batches_are_loaded_here_and_that_is_told_once(told: list[str], options: dict[str, int]) -> None:
    loader = DataLoader(Pids(), batch_size=2, num_workers=2, **options)
    for _ in range(2):
        rows = torch.cat(list(loader))
        assert rows[:, 0].tolist() == [0, 1, 2, 3]
        assert set(rows[:, 1].tolist()) == {os.getpid()}
    assert told == [NOTE]
    assert (loader.num_workers, loader.timeout) == (2, options.get("timeout", 0)), "it says what it was made with"


def test_who_wants_no_workers_hears_nothing(told: list[str]) -> None:
    assert len(list(DataLoader(Pids(), batch_size=2))) == 2
    assert told == []


def test_semaphores_are_missing_where_the_system_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_semaphores()

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    assert not has_semaphores()
