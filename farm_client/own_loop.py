"""Own loops: a script that trains asks the farm for parts, and keeps the rest of itself.

    import farm_client as farm

    for part in farm.parts(model, optimizer):            # the round's weights are in the model
        train_one_pass(model, optimizer, part.loader(dataset, batch_size=32))
        part.done(metrics={"loss": loss})                # the difference goes back

Run by itself (``python train.py``) the same file gets one part over all of its data. On a volunteer's machine the
executor is the host of the parts. What follows the loop runs at home only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, TypeAlias

if TYPE_CHECKING:
    from torch import nn

Trainable: TypeAlias = "nn.Module | MutableMapping[str, Any]"
"""What a script trains: a module, or arrays by name."""
Evaluate = Callable[[Any, "LoopPart"], Mapping[str, SupportsFloat]]
"""Called with the model and a part of held-out rows; returns metrics, means over the part's samples."""


class PartError(RuntimeError):
    """A part was used in a way that its books do not allow."""


class LoopPart:
    """Some samples to train on, or to evaluate with. ``round`` and ``epoch`` count from 0.

    Rows are items of the script's own data set, in the order in which they are to be read. They are known once the data
    set is: from ``loader`` or ``rows_of``.
    """

    def __init__(
        self,
        choose: Callable[[int], Sequence[int]],
        *,
        round_number: int = 0,
        epoch: int = 0,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``choose`` gives the rows for a data set of so many items; ``advance`` gets how many more were read."""
        self.round = round_number
        self.epoch = epoch
        self.metrics: dict[str, float] = {}
        self.is_done = False
        self._choose = choose
        self._advance = advance
        self._rows: Sequence[int] | None = None
        self._size = 0
        self._read: set[int] = set()

    @property
    def rows(self) -> Sequence[int]:
        """Which items of the data set are this part's. Raises: PartError before the data set is known."""
        if self._rows is None:
            raise PartError("part.rows is known once the data set is: call part.loader(dataset) or part.rows_of(n)")
        return self._rows

    @property
    def items(self) -> int | None:
        """The length of the script's data set, once it is known."""
        return None if self._rows is None else self._size

    @property
    def unread(self) -> int:
        """How many of its rows were not read yet."""
        return len(self.rows) - len(self._read) if self._rows is not None else 1

    def rows_of(self, items: int) -> Sequence[int]:
        """Return the rows, of a data set of so many items. Raises: PartError if it had another length before."""
        if self._rows is not None and items != self._size:
            raise PartError(f"the data set has {items} items and had {self._size}: it must stay the same in a part")
        if self._rows is None:
            self._rows, self._size = self._choose(items), items
        return self._rows

    def loader(self, dataset: Any, batch_size: int = 1, **options: Any) -> PartLoader:
        """Return torch's DataLoader over this part's rows of a map-style data set, which counts what is read.

        ``options`` are the DataLoader's own, but for those that choose rows: the farm has chosen and shuffled them.
        Given a DataLoader instead, it takes that one's data set, batch size, ``collate_fn`` and workers.
        """
        if hasattr(dataset, "batch_sampler"):
            taken = {name: getattr(dataset, name) for name in ("collate_fn", "num_workers", "pin_memory")}
            items = dataset.dataset.dataset if isinstance(dataset, PartLoader) else dataset.dataset
            return self.loader(items, dataset.batch_size or batch_size, **{**taken, **options})
        if chosen := sorted({"shuffle", "sampler", "batch_sampler"} & options.keys()):
            raise PartError(f"part.loader takes no {chosen[0]}: a part's rows are chosen and shuffled by the farm")
        return PartLoader(self, dataset, self.rows_of(len(dataset)), batch_size, options)

    def read(self, rows: Sequence[int]) -> None:
        """Count rows as read that came another way than by ``loader``. Raises: PartError for those of others."""
        new = set(rows) - self._read
        if strange := new.difference(self.rows):
            raise PartError(f"row {min(strange)} is not in this part: part.rows says which are")
        self._read |= new
        self._advance(len(new))

    def done(self, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Hand the model in as this part has left it, with metrics that are means over its samples."""
        if self.is_done:
            raise PartError("part.done() was called twice")
        self.metrics = {
            str(name): float(value.detach() if hasattr(value, "detach") else value)  # torch warns of a graph's end
            for name, value in (metrics or {}).items()
        }
        self.is_done = True


class PartLoader:
    """A DataLoader over a part's rows. A batch that was given out counts as read."""

    def __init__(
        self, part: LoopPart, dataset: Any, rows: Sequence[int], batch_size: int, options: Mapping[str, Any]
    ) -> None:
        from torch.utils.data import DataLoader, Subset  # noqa: PLC0415 - the agent imports no torch

        self._part = part
        self._rows = rows
        self._loader: DataLoader[Any] = DataLoader(Subset(dataset, rows), batch_size, shuffle=False, **options)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        """Return what a DataLoader has: scripts print ``len(loader.dataset)``, which here is that of the part."""
        if name == "_loader":  # while a copy of this is made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._loader):
            start = number * self.batch_size
            self._part.read(self._rows[start : start + self.batch_size])
            yield batch


class Host(Protocol):
    """Where parts come from."""

    def open(self, model: Trainable, carries: Mapping[str, Any], evaluate: Evaluate | None) -> None:
        """Take the model that the script trains, and what has a state beside it."""

    def next_part(self) -> LoopPart | None:
        """Return the next part, with the round's weights in the model; None at the end."""

    def config(self) -> Mapping[str, Any]:
        """Return the task's own settings."""


class AtHome:
    """The host of a script that runs by itself: one part, all rows in random order."""

    def __init__(self) -> None:
        self._parts = iter([LoopPart(_shuffled)])

    def open(self, model: Trainable, carries: Mapping[str, Any], evaluate: Evaluate | None) -> None:
        """Nothing is to be sent from here."""

    def next_part(self) -> LoopPart | None:
        """Return the one part, and then None."""
        return next(self._parts, None)

    def config(self) -> Mapping[str, Any]:
        """Return nothing: the script's own defaults hold."""
        return {}


def _shuffled(items: int) -> Sequence[int]:
    import torch  # noqa: PLC0415 - the agent imports no torch

    order: list[int] = torch.randperm(items).tolist()
    return order


_host: Host | None = None


def host_parts(host: Host | None) -> None:
    """Replace where ``parts`` come from; None is the script itself again."""
    global _host  # noqa: PLW0603 - one process runs one script
    _host = host


def current_host() -> Host | None:
    """Return where parts come from; None where a script runs by itself."""
    return _host


def parts(
    model: Trainable, optimizer: Any = None, *, evaluate: Evaluate | None = None, **carries: Any
) -> Iterator[LoopPart]:
    """Yield parts to train on. ``evaluate`` is called with the model and a part of held-out rows.

    ``model`` is a module, or a mutable mapping of names to arrays (NumPy's, or any with ``__dlpack__`` or
    ``__array__``): the round's values are in the mapping, written in place where an array can be written.
    ``optimizer``, and whatever else is given by name (a scheduler, a loss scaler: all that has ``state_dict`` and
    ``load_state_dict``), hands its state on from part to part with the model, whichever client is next
    (``inner_state = "carried"``). What is not given keeps its state on its client. Raises: PartError if the loop's body
    ends without ``part.done()``, and for an ``on_epoch_end``: scripts have none.
    """
    if "on_epoch_end" in carries:
        raise PartError("farm.parts takes no on_epoch_end: the loop is the script's own, which may do that itself")
    host = _host or AtHome()
    host.open(model, carries if optimizer is None else {"optimizer": optimizer, **carries}, evaluate)
    while (part := host.next_part()) is not None:
        yield part
        if not part.is_done:
            raise PartError("the loop's body ended without part.done(): call it when the part is trained")


def attributes(owner: object, *names: str) -> MutableMapping[str, Any]:
    """Return an object's attributes as arrays to train: ``farm.parts(farm.attributes(model, "coef_", "intercept_"))``.

    Raises: AttributeError if the owner lacks one: a linear model has them once it was fitted.
    """
    for name in names:
        getattr(owner, name)
    return _Attributes(owner, names)


class _Attributes(MutableMapping[str, Any]):
    def __init__(self, owner: object, names: Sequence[str]) -> None:
        self._owner = owner
        self._names = names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return getattr(self._owner, name)

    def __setitem__(self, name: str, array: Any) -> None:
        if name not in self._names:
            raise KeyError(name)
        setattr(self._owner, name, array)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name} stays: the farm trains these attributes to the end")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def config(**defaults: Any) -> dict[str, Any]:
    """Return the script's settings: these defaults, and what the task's ``[config]`` says instead."""
    given = {} if _host is None else _host.config()
    return {**defaults, **given}
