"""``torch.distributed`` between an executor's processes: torch's interface to what their links do.

A process group in Python, as torch's own for tests is (``torch/testing/_internal/distributed/multi_threaded_pg.py``):
FSDP2, DTensors and ``clip_grad_norm_`` call it. It has what those need, on tensors of any device, through this
machine's memory. A group of NCCL's passes gradients from card to card, and takes its place where the process may look
up network interfaces, which no sandbox of the farm's allows (ADR 105).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, HashStore, _create_work_from_future  # type: ignore[attr-defined]
from torch.futures import Future

from farm_client.executor.rank_links import Links

BACKEND: Final = "aifarm"
_STORE: Final = "ranks-store"


class LinkGroup(dist.ProcessGroup):
    """A process group over the links of an executor's ranks. What it is asked for is done when it returns."""

    def __init__(self, rank: int, size: int, links: Links) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # as torch's own groups in Python do
        self._own_rank = rank
        self._ranks = size
        self._links = links

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return what torch calls this kind of group."""
        return BACKEND

    @property
    def group_name(self) -> str:  # type: ignore[override]  # torch's is an attribute
        """Return the name that torch gave it."""
        return str(dist.distributed_c10d._world.pg_names[self])

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]  # torch's overloads
        """Let each tensor be the sum over ranks, or what else is asked for: their mean, largest or smallest."""
        wanted = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        for tensor in tensors:
            if wanted == dist.ReduceOp.SUM or wanted == dist.ReduceOp.AVG:  # noqa: PLR1714 - torch compares one way
                self._links.add_up(tensor)
                if wanted == dist.ReduceOp.AVG:
                    tensor.div_(self._ranks)
                continue
            whole = self._everyones(tensor)
            if wanted == dist.ReduceOp.MAX:
                tensor.copy_(whole.amax(0))
            elif wanted == dist.ReduceOp.MIN:
                tensor.copy_(whole.amin(0))
            else:
                raise NotImplementedError("this group adds up, and takes means, largest and smallest values")
        return _done(tensors)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> dist.Work:
        """Do the same."""
        return self.allreduce(tensors, opts)

    def broadcast(self, tensors: Any, opts: Any) -> dist.Work:  # type: ignore[override]  # as above
        """Let each tensor be one rank's."""
        for tensor in tensors:
            tensor.copy_(self._everyones(tensor)[opts.rootRank])
        return _done(tensors)

    def all_gather_single(self, output: torch.Tensor, own: torch.Tensor, opts: Any = None) -> dist.Work:
        """Let the output be all ranks' tensors, one after the other. It may share its memory with this rank's."""
        output.copy_(self._everyones(own).view_as(output))
        return _done(output)

    def all_gather_single_coalesced(
        self, outputs: Sequence[torch.Tensor], owns: Sequence[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Do so for each."""
        for output, own in zip(outputs, owns, strict=True):
            self.all_gather_single(output, own)
        return _done(outputs)

    def reduce_scatter_single(self, output: torch.Tensor, whole: torch.Tensor, opts: Any = None) -> dist.Work:
        """Let the output be this rank's part of the sum, or mean, over ranks."""
        total = whole.clone()
        self.allreduce([total], opts)
        output.copy_(total.view(self._ranks, -1)[self._own_rank].view_as(output))
        return _done(output)

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[torch.Tensor], wholes: Sequence[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Do so for each."""
        for output, whole in zip(outputs, wholes, strict=True):
            self.reduce_scatter_single(output, whole, opts)
        return _done(outputs)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Wait until all ranks are here."""
        self._links.tell(b"")
        return _done([])

    # As torch before 2.12 calls them.
    _allgather_base = all_gather_single  # type: ignore[assignment]
    allgather_into_tensor_coalesced = all_gather_single_coalesced  # type: ignore[assignment]
    _reduce_scatter_base = reduce_scatter_single  # type: ignore[assignment]
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced  # type: ignore[assignment]

    def _everyones(self, own: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors, [ranks, ...], in this process's memory."""
        whole = torch.empty((self._ranks, *own.shape), dtype=own.dtype)
        self._links.collect(own, list(whole))
        self._links.spread(whole)
        return whole


def join_group(links: Links, rank: int, size: int, device: torch.device, scratch_dir: Path) -> None:
    """Make the ranks this process's default group: NCCL's for GPUs where it can be had, else that of their links."""
    if device.type == "cuda" and may_look_up_interfaces():
        store = FileStore(str(scratch_dir / _STORE), size)
        own = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=own)
        return

    def group(_store: Any, rank: int, size: int, _timeout: Any) -> LinkGroup:
        return LinkGroup(rank, size, links)

    dist.Backend.register_backend(BACKEND, group, devices=[device.type])
    dist.init_process_group(BACKEND, store=HashStore(), rank=rank, world_size=size)


def may_look_up_interfaces(make: Callable[..., socket.socket] = socket.socket) -> bool:
    """Whether this process may ask the kernel for its network interfaces, as NCCL and gloo do to begin."""
    try:
        make(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    except (AttributeError, OSError):
        return False
    return True


def _done(result: Any) -> dist.Work:
    future: Future[Any] = Future()
    future.set_result(result)
    work: dist.Work = _create_work_from_future(future)
    return work
