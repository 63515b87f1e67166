"""One shard's rows in memory, and batches taken from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch.utils.data import default_collate

from farm_client.data.columns import DataError
from farm_client.data.shard_file import OFFSETS_SUFFIX, SPECIAL_KEY

Batch = Any
"""A dict of tensors (or lists of strings) by column; for a data set of the researcher's, whatever it collates to."""


class Rows(Protocol):
    """Rows of one shard. ``take`` gives a part of a batch and ``join`` makes a batch of parts of several shards."""

    @property
    def samples(self) -> int:
        """Count the rows."""

    @property
    def grows(self) -> bool:
        """Return whether it may hold more memory when it is read."""

    def kept(self) -> object:
        """Return all that only this shard keeps in memory."""

    def take(self, index: torch.Tensor) -> Any:
        """Return the rows of ``index`` ([n] int64)."""

    def join(self, parts: Sequence[Any]) -> Batch:
        """Make one batch of what ``take`` returned, here and in other shards of the task."""


class TextColumn:
    """A column of strings over one buffer: ``data`` [bytes] uint8, ``offsets`` [rows + 1] int64."""

    def __init__(self, data: torch.Tensor, offsets: torch.Tensor) -> None:
        self._data = data.numpy().tobytes()
        self._offsets = offsets.clone()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def take(self, index: torch.Tensor) -> list[str]:
        """Return the strings of these rows."""
        starts, stops = self._offsets[index].tolist(), self._offsets[index + 1].tolist()
        return [self._data[start:stop].decode() for start, stop in zip(starts, stops, strict=True)]


class TableRows:
    """A shard of columns; a batch is a dict of tensors [rows, ...] and lists of strings."""

    grows = False

    def __init__(self, columns: Mapping[str, torch.Tensor | TextColumn]) -> None:
        """Raises: DataError if there is no column or the columns' lengths differ."""
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"a shard's columns must have one length; they have {lengths or 'none'}")
        self._columns = dict(columns)
        self.samples = next(iter(lengths.values()))

    def kept(self) -> object:
        """Return the columns."""
        return self._columns

    def take(self, index: torch.Tensor) -> dict[str, torch.Tensor | list[str]]:
        """Return the rows of ``index``, copied."""
        return {
            name: column.index_select(0, index) if isinstance(column, torch.Tensor) else column.take(index)
            for name, column in self._columns.items()
        }

    def join(self, parts: Sequence[dict[str, Any]]) -> Batch:
        """Concatenate along the first dimension."""
        if len(parts) == 1:
            return parts[0]
        return {name: _concatenate([part[name] for part in parts]) for name in parts[0]}


class DatasetRows:
    """Rows of a map-style data set; ``item`` says which of its items each row is.

    ``is_shared``: all shards are rows of this one data set, which is kept in any case. ``collate`` makes a batch of
    a list of items.
    """

    def __init__(
        self,
        dataset: Any,
        samples: int,
        item: Callable[[int], int],
        *,
        is_shared: bool,
        collate: Callable[[list[Any]], Batch] = default_collate,
    ) -> None:
        self._collate = collate
        self._dataset = dataset
        self._item = item
        self.samples = samples
        self.grows = not is_shared

    def kept(self) -> object:
        """Return the data set, unless others share it."""
        return self._dataset if self.grows else None

    def take(self, index: torch.Tensor) -> list[Any]:
        """Return the items of these rows."""
        return [self._dataset[self._item(row)] for row in index.tolist()]

    def join(self, parts: Sequence[list[Any]]) -> Batch:
        """Collate the items as torch's DataLoader does."""
        return self._collate([item for part in parts for item in part])


def read_shard(path: Path) -> TableRows:
    """Read a shard file as ``shard_file`` writes it; its tensors are memory-mapped where torch can.

    Raises: FileNotFoundError; DataError if it is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            special = json.loads((file.metadata() or {}).get(SPECIAL_KEY, "{}"))
    except safetensors.SafetensorError as error:
        raise DataError(f"{path.name} is not a shard file: {error}") from error
    columns: dict[str, torch.Tensor | TextColumn] = {}
    for name in special.get("bfloat16", ()):
        tensors[name] = tensors[name].view(torch.bfloat16)
    for name in special.get("texts", ()):
        columns[name] = TextColumn(tensors.pop(name), tensors.pop(name + OFFSETS_SUFFIX))
    return TableRows(columns | tensors)


def _concatenate(values: Sequence[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    return [text for part in values for text in part]
