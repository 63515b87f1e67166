"""How an executor's processes add up tensors: over Unix sockets that rank 0 made before it started the others.

No path, no address and no network is needed, so this works in every sandbox: gloo and NCCL ask the kernel for network
interfaces over netlink, which no rung allows. All go to rank 0, which adds in the order of ranks: so the sum is the
same to the bit whoever was faster, and on all ranks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch

from protocol.errors import FarmError

_LENGTH_BYTES: Final = 8
_BUFFER_BYTES: Final = 4 * 1024 * 1024


class RankLost(FarmError):
    """One of the executor's processes has ended; another machine, or another try, may do."""


class OutOfStep(FarmError):
    """Two ranks mean different things by what they exchange: the task's code does not do the same on all of them."""


class Links(Protocol):
    """A rank's way to the others. All ranks call the same, in the same order."""

    def add_up(self, tensor: torch.Tensor) -> None:
        """Let the tensor, of one shape and type on all ranks, be the sum over ranks. Raises: RankLost, OutOfStep."""

    def collect(self, own: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Bring each rank's tensor to rank 0, whose ``parts``, in its memory, they become. Raises: RankLost, OutOfStep.

        Other ranks give no parts. Rank r's tensor has the shape and type of part r.
        """

    def spread(self, whole: torch.Tensor) -> None:
        """Let a tensor in this process's memory be what rank 0's is. Raises: RankLost, OutOfStep."""

    def tell(self, text: bytes) -> list[bytes]:
        """Tell all ranks something; return what each told, by rank. Raises: RankLost."""


class Hub:
    """Rank 0's."""

    def __init__(self, sockets: Sequence[socket.socket], lost: Callable[[], None] = lambda: None) -> None:
        """``sockets``: one to each other rank, in order. ``lost`` is called once one of them has ended."""
        self._sockets = sockets
        self._lost = lost

    def add_up(self, tensor: torch.Tensor) -> None:
        """Let the tensor be the sum over ranks."""
        total = _on_host(tensor)
        theirs = torch.empty_like(total)
        try:
            for one in self._sockets:
                _receive_tensor(one, theirs)
                total.add_(theirs)
            for one in self._sockets:
                _send_tensor(one, total)
        except OSError as error:
            self._lost()
            raise RankLost from error
        tensor.copy_(total)

    def collect(self, own: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Take each other rank's tensor, and put this one's beside them."""
        parts[0].copy_(own)
        try:
            for one, part in zip(self._sockets, parts[1:], strict=True):
                _receive_tensor(one, part)
        except OSError as error:
            self._lost()
            raise RankLost from error

    def spread(self, whole: torch.Tensor) -> None:
        """Send a tensor to all others."""
        try:
            for one in self._sockets:
                _send_tensor(one, whole)
        except OSError as error:
            self._lost()
            raise RankLost from error

    def tell(self, text: bytes) -> list[bytes]:
        """Tell all ranks something."""
        try:
            told = [text, *(_receive_text(one) for one in self._sockets)]
            for one in self._sockets:
                for part in told:
                    _send_text(one, part)
        except OSError as error:
            self._lost()
            raise RankLost from error
        return told


class Spoke:
    """Another rank's."""

    def __init__(self, to_hub: socket.socket, size: int) -> None:
        self._to_hub = to_hub
        self._size = size

    def add_up(self, tensor: torch.Tensor) -> None:
        """Let the tensor be the sum over ranks."""
        own = _on_host(tensor)
        try:
            _send_tensor(self._to_hub, own)
            _receive_tensor(self._to_hub, own)
        except OSError as error:
            raise RankLost from error
        tensor.copy_(own)

    def collect(self, own: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Send this rank's tensor to rank 0."""
        try:
            _send_tensor(self._to_hub, _on_host(own))
        except OSError as error:
            raise RankLost from error

    def spread(self, whole: torch.Tensor) -> None:
        """Take rank 0's."""
        try:
            _receive_tensor(self._to_hub, whole)
        except OSError as error:
            raise RankLost from error

    def tell(self, text: bytes) -> list[bytes]:
        """Tell all ranks something."""
        try:
            _send_text(self._to_hub, text)
            return [_receive_text(self._to_hub) for _ in range(self._size)]
        except OSError as error:
            raise RankLost from error


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a link."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy in this process's memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _send_tensor(one: socket.socket, tensor: torch.Tensor) -> None:
    one.sendall(tensor.nbytes.to_bytes(_LENGTH_BYTES, "little"))
    one.sendall(_bytes_of(tensor))


def _receive_tensor(one: socket.socket, into: torch.Tensor) -> None:
    """Raises: OutOfStep if something of another size comes: by its bytes alone it could be taken for this."""
    length = bytearray(_LENGTH_BYTES)
    _receive(one, memoryview(length))
    if (size_bytes := int.from_bytes(length, "little")) != into.nbytes:
        raise OutOfStep(
            f"the processes of this machine went apart: one sent {size_bytes} bytes where another waits for "
            f"{into.nbytes}; the task's steps do not do the same for all rows: run it with --processes 1"
        )
    _receive(one, _bytes_of(into))


def _receive(one: socket.socket, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = one.recv_into(into[done:])
        if not count:
            raise ConnectionResetError("a rank has closed its link")
        done += count


def _send_text(one: socket.socket, text: bytes) -> None:
    one.sendall(len(text).to_bytes(_LENGTH_BYTES, "little") + text)


def _receive_text(one: socket.socket) -> bytes:
    length = bytearray(_LENGTH_BYTES)
    _receive(one, memoryview(length))
    text = bytearray(int.from_bytes(length, "little"))
    _receive(one, memoryview(text))
    return bytes(text)
