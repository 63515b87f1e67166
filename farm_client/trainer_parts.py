"""Parts for loops that are another library's: what its callback does with the farm, and rows of a data set by the part.

A Trainer goes over a loader of its own, epoch after epoch. On the farm one of its epochs is one part: ``rows(dataset)``
shows the loader the part's rows as if they were the whole data set, and the library's callback hands the model in at
the epoch's end and takes the next part. By itself the script runs as if neither were there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from farm_client.own_loop import Evaluate, LoopPart, PartError, current_host


class PartRows:
    """The items of a map-style data set that are the current part's; all of them before there is one.

    An item counts as read when it is fetched, in a worker process of the loader too. Other attributes are the data
    set's.
    """

    def __init__(self, dataset: Any) -> None:
        import torch  # noqa: PLC0415 - the agent imports no torch

        self.dataset = dataset
        self._torch = torch
        self._rows: Sequence[int] = range(len(dataset))
        self._fetched = torch.zeros(0, dtype=torch.bool)
        self._reported = torch.zeros(0, dtype=torch.bool)
        self._part: LoopPart | None = None

    def __len__(self) -> int:
        """Return how many rows the part has."""
        self._follow()
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        """Return an item, and note that it was read."""
        self._follow()
        item = self.dataset[self._rows[index]]
        if len(self._fetched):
            self._fetched[index] = True
        return item

    def __getattr__(self, name: str) -> Any:
        """Return what only the data set has."""
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict[str, Any]:
        """Go to a loader's worker process with the part's rows and the memory in which fetched ones are noted."""
        return {**self.__dict__, "_part": None, "_torch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin in a worker process."""
        self.__dict__.update(state)

    def report(self) -> None:
        """Tell the part what was fetched since the last time."""
        if self._part is None:
            return
        new = (self._fetched & ~self._reported).nonzero().flatten().tolist()
        self._reported[new] = True
        self._part.read([self._rows[index] for index in new])

    def _follow(self) -> None:
        """Turn to the current part, in the process that has one."""
        part = _current.part
        if part is None or part is self._part or self._torch is None:
            return
        if self._torch.utils.data.get_worker_info() is not None:
            return
        self._part, self._rows = part, part.rows_of(len(self.dataset))
        # Shared: worker processes of the loader write into it. New ones for each part: a late worker changes nothing.
        self._reported = self._torch.zeros(len(self._rows), dtype=self._torch.bool)
        self._fetched = self._reported.clone()
        self._fetched.share_memory_()  # type: ignore[no-untyped-call]
        _current.readers.append(self)


class _Current:
    """The part that is being trained, and the data sets that give its rows."""

    def __init__(self) -> None:
        self.part: LoopPart | None = None
        self.readers: list[PartRows] = []


_current = _Current()


def rows(dataset: Any) -> Any:
    """Return what a Trainer is to train on instead of a map-style data set: on the farm, the part's rows of it."""
    return dataset if current_host() is None else PartRows(dataset)


class TrainerParts:
    """What a library's callback does with the farm. Out of a farm ``is_hosted`` is false and there is nothing to do."""

    def __init__(self, evaluate: Evaluate | None) -> None:
        self._evaluate = evaluate
        self._host = current_host()
        _current.part, _current.readers = None, []  # those of a script that was broken off

    @property
    def is_hosted(self) -> bool:
        """Return whether there is a farm."""
        return self._host is not None

    def open(self, model: Any, carries: Mapping[str, Any]) -> None:
        """Give the farm the model, and what has a state that goes from client to client; then take the first part."""
        assert self._host is not None  # noqa: S101 - the callback asked is_hosted
        self._host.open(model, carries, self._evaluate)
        self._take()

    @property
    def is_read(self) -> bool:
        """Return whether all rows of the part were read."""
        return _current.part is not None and _current.part.unread == 0

    def report(self) -> None:
        """Tell the farm which rows were read since the last time."""
        for reader in _current.readers:
            reader.report()

    def next(self, metrics: Mapping[str, SupportsFloat]) -> bool:
        """Hand the model in and wait for the next part; return whether there is one.

        Raises: PartError if the Trainer's data were not ``rows(dataset)``.
        """
        if _current.part is None or not _current.readers:
            raise PartError("the Trainer read no row of this part: give it farm.rows(dataset) to train on")
        self.report()
        _current.part.done(metrics)
        return self._take()

    def _take(self) -> bool:
        assert self._host is not None  # noqa: S101
        _current.part, _current.readers = None, []
        _current.part = self._host.next_part()
        return _current.part is not None


def named(kind: str, things: Sequence[Any]) -> dict[str, Any]:
    """Return things by the names under which their states are carried: the kind alone, or numbered."""
    return {kind: things[0]} if len(things) == 1 else {f"{kind}.{n}": thing for n, thing in enumerate(things)}
