"""One task's tensors on the server: weights, outer optimizer and accumulator. No model code, only named tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from coordinator.aggregation import Accumulator, all_finite
from coordinator.outer_optimizer import OuterStep
from protocol.errors import MalformedTensors
from protocol.recipe import OuterOptimizer
from protocol.tensors import parse_layout, read_header


class TaskTensors:
    """What a round needs, kept between rounds. Used by one thread at a time.

    ``weights`` and ``optimizer`` are safetensors files; later versions get the first one's header, byte for byte, so
    that equal weights are equal files (the library writes metadata in random order).
    Memory: weights, accumulator and optimizer state, and while committing one serialized copy of the weights.
    """

    def __init__(self, outer: OuterOptimizer, weights: bytes, optimizer: bytes | None) -> None:
        header = read_header(weights)
        layout = parse_layout(header)
        self._order = sorted(header.tensors, key=lambda name: header.tensors[name].start)
        self._head = weights[: min((t.start for t in header.tensors.values()), default=len(weights))]
        self._weights = _load(weights)
        self._outer = OuterStep(outer, self._weights, layout)
        if optimizer is not None:
            self._outer.load(_load(optimizer))
        self._accumulator = Accumulator(layout)

    def begin(self) -> None:
        """Start a round: forget what was folded."""
        self._accumulator.reset()

    def fold(
        self, source: bytes | Path, samples: int, scale: float = 1.0, midway: Callable[[], object] | None = None
    ) -> None:
        """Add ``samples * scale`` times an update, given as a file's bytes or its path. It was checked before.

        ``midway`` is called when one tensor is folded already (for faults on purpose).
        """
        update = _load(source)
        self._accumulator.fold(update if midway is None else _Watched(update, midway), samples, scale)

    def step(self) -> tuple[bytes, bytes | None]:
        """Apply the mean of what was folded; return the new weights file and optimizer state file.

        The state is None where the optimizer has none. Raises: EmptyRound.
        """
        self._outer.step(self._accumulator.mean())
        state = self._outer.state()
        weights = b"".join([self._head, *(_raw(self._weights[name]) for name in self._order)])
        return weights, safetensors.torch.save(state) if state else None


class _Watched(dict[str, torch.Tensor]):
    """An update that calls ``midway`` whenever it is asked for a tensor after the first (or for the only one)."""

    def __init__(self, update: dict[str, torch.Tensor], midway: Callable[[], object]) -> None:
        super().__init__(update)
        self._midway = midway
        self._asked = len(update) == 1

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor."""
        if self._asked:
            self._midway()
        self._asked = True
        return super().__getitem__(name)


def non_finite_tensor(source: bytes | Path) -> str | None:
    """Return the name of a tensor of the file with NaN or infinity in it, or None. Raises: MalformedTensors."""
    return all_finite(_load(source))


def warm_up(torch_threads: int) -> None:
    """Do once what torch does slowly the first time: building an optimizer imports its compiler."""
    torch.set_num_threads(torch_threads)
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.SGD([weight], lr=1.0).step()


def _raw(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's bytes without a copy."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _load(source: bytes | Path) -> dict[str, torch.Tensor]:
    """Return a tensor file's tensors; those of a path are read from the page cache as they are used."""
    try:
        if isinstance(source, bytes):
            return safetensors.torch.load(source)
        with safe_open(source, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, ValueError) as error:
        raise MalformedTensors(f"the tensor file can't be read: {error}") from error
