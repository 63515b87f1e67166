"""A model that an executor's ranks hold together: each has a part of every parameter (FSDP2).

Zhao et al., "PyTorch FSDP", VLDB 2023, arXiv:2304.11277, as ``torch.distributed.fsdp.fully_shard`` does it: gradients
and the optimizer's state are in parts as well, and a layer's parameters are whole on each rank only while it computes.
Rank r of n has rows r * ceil(rows / n) and on. Each rank's loss is of its own rows of a batch, and weighs by them: the
sum over ranks is the gradient of the batch's mean loss, whose part each rank gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from farm_client.executor.rank_links import Links


class Shards:
    """A model in parts."""

    def __init__(self, model: nn.Module, rank: int, size: int, links: Links, device: torch.device) -> None:
        """Part it, a block at a time, and move it to the device. The process has a default group of these ranks."""
        self._rank = rank
        self._size = size
        self._links = links
        mesh = DeviceMesh(device.type, range(size))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        shell = _Shell(model)
        self._shell: Any = fully_shard(shell, mesh=mesh)
        for module in shell.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def begin(self) -> None:
        """Begin an assignment: each rank holds its parts alone, whatever a forward pass has left."""
        self._shell.reshard()

    def within(self, call: Callable[[], tuple[torch.Tensor | None, Any]]) -> Any:
        """Return the second of what a call does with the model returns; the first is the loss, if it has one."""
        return self._shell(call)[1]

    def own(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a whole tensor, which is parted as the parameter is. Nothing travels."""
        if not isinstance(parameter, DTensor) or isinstance(whole, DTensor) or whole.shape != parameter.shape:
            return whole
        start, stop = self._rows(len(whole), self._rank)
        part = whole[start:stop].to(parameter.device)
        return DTensor.from_local(
            part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def gathered(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take tensors out of a dictionary, one by one; return them whole, in this machine's memory, on rank 0.

        Other ranks get nothing.
        """
        found = {}
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not isinstance(tensor, DTensor):
                found[name] = tensor
                continue
            rows = [self._rows(len(tensor), rank) for rank in range(self._size)] if self._rank == 0 else []
            whole = torch.empty(tensor.shape if rows else (), dtype=tensor.dtype)
            self._links.collect(tensor.to_local().contiguous(), [whole[start:stop] for start, stop in rows])
            found[name] = whole
        return found if self._rank == 0 else {}

    def _rows(self, count: int, rank: int) -> tuple[int, int]:
        most = -(-count // self._size)
        return min(rank * most, count), min((rank + 1) * most, count)


class _Shell(nn.Module):
    """Holds a model so that all of the task's loss, and not only ``forward``, is computed with whole parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], tuple[torch.Tensor | None, Any]]) -> tuple[torch.Tensor | None, Any]:
        """Call it; the loss is seen by FSDP, which begins the backward pass there."""
        return call()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the model's lists that share no parameter with the rest: they are parted one by one.

    Of lists within a list the outer ones count. What is in none is whole for the length of a step.
    """
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: list[nn.Module] = []
    within: set[int] = set()
    for module in model.modules():
        if id(module) in within or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        for block in module:
            is_list = isinstance(block, nn.ModuleList | nn.ModuleDict)
            own = [parameter for each in block.modules() for parameter in each.parameters(recurse=False)]
            if is_list or not own or any(uses[id(one)] != sum(one is other for other in own) for one in own):
                continue
            found.append(block)
            within |= {id(one) for one in block.modules()}
    return found
