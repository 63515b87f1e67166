"""Data loaders of a task's code with worker processes, in a sandbox that has no semaphores for them.

Beside Landlock a task gets nothing of /dev/shm, which all programs of the user share, and POSIX semaphores are files of
it: a ``DataLoader`` with workers would fail at its first batch. There the executor loads the batches itself.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, Final

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

NOTE: Final = (
    "this machine's sandbox (landlock) has no shared memory for worker processes: the DataLoader's batches are loaded "
    "in the executor itself, as with num_workers=0"
)


def has_semaphores() -> bool:
    """Return whether processes that are started here could wait for each other."""
    try:
        multiprocessing.Lock()
    except OSError:
        return False
    return True


def load_without_workers(tell: Callable[[str], None]) -> None:
    """Have all data loaders do without workers from now on; ``tell`` hears it once, when one had wanted some."""
    former = DataLoader._get_iterator
    told: list[bool] = []

    def get_iterator(loader: DataLoader[Any]) -> Any:
        if not loader.num_workers:
            return former(loader)
        if not told:
            told.append(True)
            tell(NOTE)
        wanted = loader.num_workers, loader.timeout
        loader.num_workers, loader.timeout = 0, 0
        try:
            return _SingleProcessDataLoaderIter(loader)
        finally:
            loader.num_workers, loader.timeout = wanted

    DataLoader._get_iterator = get_iterator  # type: ignore[assignment,method-assign]
