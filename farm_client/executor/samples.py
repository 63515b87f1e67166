"""From an assignment's pieces to batches: shards are read once and kept in memory between rounds."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from farm_client.data.order import StrideOrder, order_of_streams, shard_order
from farm_client.data.seeds import derived_seed
from farm_client.data.shards import Batch, DatasetRows, Rows, TableRows, read_shard
from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError, EmptyData, MissingFile, calling, text_of
from farm_client.executor.messages import LoadTask, Piece
from farm_client.executor.randomness import apart
from farm_client.executor.shard_cache import ShardCache
from farm_client.executor.streams import is_stream, stretch
from protocol.tasks import Split

KEPT_SHARDS_BYTES: Final = 1 << 30
"""Shards stay in memory up to this; the least recently used go first."""
KEPT_ORDERS_BYTES: Final = 1 << 28
"""The shuffled orders of shards likewise: 8 bytes a row."""


@dataclass(frozen=True)
class ShardView:
    """What ``load_shard(shard)`` is given. ``path`` is the shard's file, or None for a task without data files."""

    index: int
    split: Split
    samples: int
    first_row: int
    path: Path | None
    config: Mapping[str, Any]


class Batches:
    """The batches of some pieces, in order; iterable any number of times. ``len`` counts batches."""

    def __init__(
        self,
        parts: Sequence[tuple[Callable[[], Rows], torch.Tensor]],
        order: LoadTask,
        device: torch.device,
        code_dir: Path,
    ) -> None:
        self._parts = parts
        self._size = order.batch_samples
        self._columns = order.tuple_columns
        self._device = device
        self._code_dir = code_dir
        self._share: Callable[[int], tuple[int, int]] | None = None
        self.samples = sum(len(index) for _, index in parts)

    def __len__(self) -> int:
        return len(even_sizes(self.samples, self._size))

    def __iter__(self) -> Iterator[Batch]:
        for _, batch in self.sized():
            yield batch

    def shared_out(self, share: Callable[[int], tuple[int, int]]) -> Batches:
        """Return the same with each batch cut to a share of it, from and to; its samples are still the whole batch's.

        A batch of which the share is empty is None.
        """
        cut = copy.copy(self)
        cut._share = share
        return cut

    def rows(self, start: int, stop: int) -> list[list[int]]:
        """Return which rows the samples ``start`` to ``stop`` are: for each piece, those of its shard."""
        found = []
        for _, index in self._parts:
            found.append([int(row) for row in index[max(start, 0) : max(stop, 0)]])
            start, stop = start - len(index), stop - len(index)
        return found

    def sized(self, skip: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield (samples, batch), in as few batches as fit the size, which differ by one sample at most.

        A last batch of a stray sample would weigh as much as a whole step, and BatchNorm cannot train on one.
        ``skip``: so many batches were had before; nothing of theirs is read.
        """
        all_sizes = even_sizes(self.samples, self._size)
        sizes, had = iter(all_sizes[skip:]), sum(all_sizes[:skip])
        pending: list[tuple[Rows, torch.Tensor]] = []
        size = room = next(sizes, 0)
        for read, whole in self._parts:
            index, had = whole[had:], max(0, had - len(whole))
            if not len(index):
                continue
            rows, rest = read(), index
            while len(rest) >= room > 0:
                yield size, self._batch([*pending, (rows, rest[:room])])
                rest, pending = rest[room:], []
                size = room = next(sizes, 0)
            if len(rest):
                pending.append((rows, rest))
                room -= len(rest)

    def _batch(self, parts: Sequence[tuple[Rows, torch.Tensor]]) -> Batch:
        if self._share is not None and not (parts := _cut(parts, *self._share(sum(len(index) for _, index in parts)))):
            return None
        with calling("the data set's items", self._code_dir, _about_items):
            batch = parts[0][0].join([rows.take(index) for rows, index in parts])
        if self._columns and isinstance(batch, Mapping):
            batch = as_tuple(batch, self._columns)
        return batch if self._device.type == "cpu" else moved(batch, self._device)


def _cut(parts: Sequence[tuple[Rows, torch.Tensor]], start: int, stop: int) -> list[tuple[Rows, torch.Tensor]]:
    """Return what of the parts, one after the other, is from ``start`` to ``stop``."""
    kept = []
    for rows, index in parts:
        if len(index[max(start, 0) : max(stop, 0)]):
            kept.append((rows, index[max(start, 0) : max(stop, 0)]))
        start, stop = start - len(index), stop - len(index)
    return kept


def _about_items(error: BaseException) -> str:
    if "equal size" not in text_of(error):
        return ""
    return "; the items of one batch must have one shape: pad them, or add collate_fn(items), which makes the batch"


def as_tuple(batch: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    """Return these columns of a batch, in this order. Raises: CodeError if there is no such column."""
    if absent := [name for name in columns if name not in batch]:
        raise CodeError(f"a batch has no column {absent[0]!r} to make a tuple of: its columns are {', '.join(batch)}")
    return tuple(batch[name] for name in columns)


def even_sizes(samples: int, largest: int) -> list[int]:
    """Part ``samples`` into the fewest batches of at most ``largest``, as even as can be, larger ones first.

    Where ``largest`` is over 1 no batch is of a single sample, unless there is only that one: of an odd number of
    samples in twos, the first batch has three.
    """
    count = math.ceil(samples / largest)
    if largest > 1:
        count = min(count, max(samples // 2, 1))
    return [samples // count + (i < samples % count) for i in range(count)]


class SampleSource:
    """Gives a task's batches, whatever its data is: shard files, ``load_shard``, or ``make_dataset``."""

    def __init__(self, contract: Contract, order: LoadTask, device: torch.device) -> None:
        self._contract = contract
        self._order = order
        self._device = device
        self._shards = ShardCache(lambda: KEPT_SHARDS_BYTES)
        self._dataset: Any = None
        self._orders: OrderedDict[int, tuple[int, torch.Tensor]] = OrderedDict()

    def batches(self, pieces: Sequence[Piece], epoch: int) -> Batches:
        """Return the batches of the pieces, concatenated in their order. Shards are read as their rows are needed.

        Raises: EmptyData if there is no row. Iterating raises MissingFile if a shard's file is gone; CodeError.
        """
        self._shards.trim()
        parts = [(partial(self._rows, piece), self._index(piece, epoch)) for piece in pieces]
        if not any(len(index) for _, index in parts):
            raise EmptyData("the assignment has no sample: the data set is empty")
        return Batches(parts, self._order, self._device, self._contract.code_dir)

    def count_rows(self) -> int:
        """Return the length of the ``make_dataset`` data set. Raises: CodeError, for a stream too."""
        dataset = self._made_dataset()
        if is_stream(dataset):
            raise CodeError(
                f"make_dataset returned a stream ({type(dataset).__name__}), whose length nobody knows: write "
                "samples = N into [task] of --config"
            )
        return len(dataset)

    def known_rows(self) -> int | None:
        """Return the length of the ``make_dataset`` data set; None of a stream."""
        dataset = self._made_dataset()
        return None if is_stream(dataset) else len(dataset)

    def _made_dataset(self) -> Any:
        """Return the researcher's data set, which is built at the first use."""
        if self._dataset is None:
            with apart(derived_seed(self._order.seed, "make_dataset"), self._device):
                self._dataset = self._contract.make_dataset()
        return self._dataset

    def _index(self, piece: Piece, epoch: int) -> torch.Tensor:
        """Slice the shard's order of this epoch, which is kept for a while."""
        known = self._orders.pop(piece.shard, None)
        if known is None or known[0] != epoch:
            known = (epoch, self._shard_order(piece, epoch))
        self._orders[piece.shard] = known
        while len(self._orders) > 1 and sum(o.nbytes for _, o in self._orders.values()) > KEPT_ORDERS_BYTES:
            self._orders.popitem(last=False)
        return known[1][piece.start : piece.stop]

    def _shard_order(self, piece: Piece, epoch: int) -> torch.Tensor:
        if piece.stride:
            return order_of_streams(piece.shard_samples, self._order.batch_samples)
        return shard_order(self._order.seed, epoch, piece.shard, piece.shard_samples, piece.split)

    def _rows(self, piece: Piece) -> Rows:
        rows = self._shards.get(piece.shard)
        if rows is None:
            with apart(derived_seed(self._order.seed, "shard", piece.shard), self._device):
                rows = self._read(piece)
            if rows.samples != piece.shard_samples:
                raise CodeError(f"shard {piece.shard} has {rows.samples} rows and should have {piece.shard_samples}")
            self._shards.put(piece.shard, rows)
        return rows

    def _read(self, piece: Piece) -> Rows:
        if self._contract.has("load_shard"):
            return self._own_rows(piece)
        if piece.path is not None:
            try:
                return read_shard(Path(piece.path))
            except FileNotFoundError as error:  # in the middle of the researcher's code, perhaps, and not theirs
                raise MissingFile(f"{MissingFile().message} ({piece.path})") from error
        if is_stream(self._made_dataset()):
            return self._stream_rows(piece)
        item = self._item_in_order(piece) if piece.stride else self._item_at_random(piece)
        return DatasetRows(self._dataset, piece.shard_samples, item, is_shared=True, collate=self._contract.collate)

    def _item_at_random(self, piece: Piece) -> Callable[[int], int]:
        stride = StrideOrder(self.count_rows(), self._order.seed)
        return lambda row: stride.item(piece.first_row + row)

    def _item_in_order(self, piece: Piece) -> Callable[[int], int]:
        of_stream = piece.shard_samples // self._order.batch_samples
        return lambda row: piece.first_row + row // of_stream * piece.stride + row % of_stream

    def _stream_rows(self, piece: Piece) -> Rows:
        """Read a shard's stretch of the stream, with the random numbers of every other time that it is read."""
        if piece.stride:
            raise CodeError(
                'order = "sequential" reads many places of the data side by side, and make_dataset returned a stream, '
                "which is read from its beginning: return a data set with __len__ and __getitem__"
            )
        with apart(derived_seed(self._order.seed, "stream"), self._device):
            items = stretch(self._made_dataset(), piece.first_row, piece.shard_samples, self._contract.code_dir)
        return DatasetRows(items, len(items), lambda row: row, is_shared=False, collate=self._contract.collate)

    def _own_rows(self, piece: Piece) -> Rows:
        path = None if piece.path is None else Path(piece.path)
        if piece.stride and path is None:
            raise CodeError(
                'order = "sequential" cuts shards of many places of the data, which load_shard is not told of: give '
                "files with --data, or make_dataset(config)"
            )
        view = ShardView(piece.shard, piece.split, piece.shard_samples, piece.first_row, path, self._order.settings)
        loaded = self._contract.load_shard(view)
        if isinstance(loaded, Mapping):
            with calling("load_shard(shard)", self._contract.code_dir):
                return TableRows({str(name): as_column(name, values) for name, values in loaded.items()})
        if hasattr(loaded, "__len__") and hasattr(loaded, "__getitem__"):
            collate = self._contract.collate
            return DatasetRows(loaded, len(loaded), lambda row: row, is_shared=False, collate=collate)
        raise CodeError(
            f"load_shard must return a dict of tensors or a map-style data set, it returned {type(loaded).__name__}"
        )


def as_column(name: object, values: Any) -> torch.Tensor:
    """Return a column of ``load_shard`` as a tensor; numpy arrays are taken as they are.

    Raises: CodeError naming the column.
    """
    try:
        column = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CodeError(f"load_shard's column {name!r} is no tensor: {error}") from error
    if column.ndim == 0:
        raise CodeError(f"load_shard's column {name!r} is a single number; it needs a row for each sample")
    return column


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device. None of them waits for what the device does."""
    if isinstance(batch, torch.Tensor):
        return _pinned(batch, device).to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def _pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor in memory that a card reads by itself: copies from other memory wait for the steps before."""
    is_plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel() > 0
    return tensor.pin_memory() if device.type == "cuda" and is_plain else tensor
