"""A map's code: ``map_item(item, config)`` or ``map_batch(batch, config)``, and ``setup(config)`` if it has one.

Each batch of items has seeds of its own, from the task's and the place of its first item, so that who runs it again
gets the same outputs, whoever ran it before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from farm_client.data.seeds import derived_seed
from farm_client.executor.contract import load_contract
from farm_client.executor.failures import CodeError, calling
from farm_client.executor.messages import LoadTask
from farm_client.executor.randomness import seed_everything
from farm_client.outputs import ItemError, pack_output
from protocol.maps import MapPlan, OnError

SETUP: Final = "setup"
"""The name in ``config`` of what ``setup(config)`` returned."""
_MAX_TRACEBACK_CHARS: Final = 4000


class WrongAnswer(CodeError):
    """A batch's function did not return an output for each item: it is no item that is at fault."""


class MapFunction:
    """The functions of one task, imported and set up once for each executor."""

    def __init__(self, order: LoadTask, device: torch.device, *, sets_up: bool = True) -> None:
        """Import the code and call ``setup``, unless it need not be ready. Raises: CodeError; memory errors."""
        self._plan = order.map or MapPlan()
        self._seed, self._device = order.seed, device
        contract = load_contract(Path(order.code_dir), order.entry, order.settings)
        self.code_dir = contract.code_dir
        self.takes_batches = contract.has("map_batch")
        if not self.takes_batches and not contract.has("map_item"):
            raise CodeError(f"{order.entry} has no function map_item(item, config), nor map_batch(batch, config)")
        self._function = contract.module.map_batch if self.takes_batches else contract.module.map_item
        self._named = "map_batch(batch, config)" if self.takes_batches else "map_item(item, config)"
        self.failed_items = 0
        """For how many items the function raised so far, where they are skipped."""
        self._config: dict[str, Any] = dict(order.settings)
        if sets_up and contract.has(SETUP):
            seed_everything(order.seed, device)
            with calling("setup(config)", self.code_dir):
                self._config[SETUP] = contract.module.setup(dict(order.settings))

    def outputs(self, items: Any, position: int, count: int) -> list[bytes]:
        """Return the outputs of some items, packed; the first of them is at ``position``.

        ``items`` are a batch: of columns, or a list. Raises: CodeError that names the item, unless such items are
        skipped; memory errors.
        """
        if not self.takes_batches:
            return [self._one(item_of(items, n), position + n) for n in range(count)]
        try:
            return self._batch(items, position, count)
        except WrongAnswer:
            raise
        except CodeError as error:
            if count == 1:
                return [self._failed(error, position)]
            outputs = [self._alone(batch_of(items, n), position + n) for n in range(count)]
            if self._plan.on_error is OnError.SKIP:
                return outputs
            raise  # each item alone is well: it is the batch that is not

    def _one(self, item: Any, position: int) -> bytes:
        seed_everything(derived_seed(self._seed, "item", position), self._device)
        try:
            with calling(self._named, self.code_dir, lambda _: f" (item {position})", self._function):
                return pack_output(self._function(item, self._config))
        except CodeError as error:
            return self._failed(error, position)

    def _alone(self, batch: Any, position: int) -> bytes:
        try:
            return self._batch(batch, position, 1)[0]
        except CodeError as error:
            return self._failed(error, position)

    def _failed(self, error: CodeError, position: int) -> bytes:
        """Return what stands in a failed item's place. Raises: the error, unless such items are skipped."""
        if self._plan.on_error is OnError.STOP:
            raise error
        self.failed_items += 1
        return pack_output(ItemError(position, error.message, (error.trace or "")[-_MAX_TRACEBACK_CHARS:]))

    def _batch(self, batch: Any, position: int, count: int) -> list[bytes]:
        seed_everything(derived_seed(self._seed, "item", position), self._device)
        place = f"item {position}" if count == 1 else f"items {position} to {position + count - 1}"
        with calling(self._named, self.code_dir, lambda _: f" ({place})", self._function):
            answer = self._function(batch, self._config)
            return [pack_output(output) for output in _rows_of(answer, count)]


def item_of(items: Any, n: int) -> Any:
    """Return one item of a batch: a row of each column, or an element of a list."""
    return {name: column[n] for name, column in items.items()} if isinstance(items, Mapping) else items[n]


def batch_of(items: Any, n: int) -> Any:
    """Return a batch of one item."""
    return {name: column[n : n + 1] for name, column in items.items()} if isinstance(items, Mapping) else [items[n]]


def _rows_of(answer: Any, count: int) -> Iterator[Any]:
    """Yield what a batch's function returned for each item. Raises: WrongAnswer if it is of other items."""
    columns: Sequence[Any] = tuple(answer.values()) if isinstance(answer, Mapping) else (answer,)
    for column in columns:
        if not hasattr(column, "__len__") or isinstance(column, str | bytes) or len(column) != count:
            found = f"{len(column)} of them" if hasattr(column, "__len__") else f"a {type(column).__name__}"
            raise WrongAnswer(
                f"map_batch must return an output for each of the {count} items: a list or an array of so many, or a "
                f"dict of these; it returned {found}"
            )
    return (item_of(answer, n) for n in range(count))
