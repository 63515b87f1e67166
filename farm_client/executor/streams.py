"""Data sets without numbered items: a shard is a stretch of the stream that ``make_dataset`` gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from farm_client.executor.failures import CodeError, calling


def is_stream(dataset: object) -> bool:
    """Return whether a data set is read from its beginning, any number of times, and not by its items' numbers."""
    if isinstance(dataset, IterableDataset):
        return True
    return isinstance(dataset, Iterable) and not isinstance(dataset, Iterator) and not hasattr(dataset, "__getitem__")


def stretch(dataset: Iterable[Any], first: int, count: int, code_dir: Path) -> list[Any]:
    """Return ``count`` items from number ``first`` on; those before it are made and dropped.

    Raises: CodeError if the stream ends before, or raises.
    """
    with calling("the data set's items", code_dir):
        items = list(islice(dataset, first, first + count))
    if len(items) < count:
        raise CodeError(
            f"make_dataset's stream ended before item {first + len(items)}, and samples in [task] says that there are "
            f"at least {first + count}: lower it"
        )
    return items
