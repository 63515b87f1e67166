"""The processes of one executor that share its batches out, and add up what each has the gradient of.

Data-parallel training (Li et al., "PyTorch Distributed", VLDB 2020, arXiv:2006.15704): of each batch every process, a
*rank*, takes as many rows as the others, give or take one. The gradient is the sum over ranks of ``rows / batch``
times the gradient of the mean loss of a rank's rows, which is that of the whole batch wherever its loss is a mean over
samples. All ranks step by it, and so hold the same weights.

The task's code sees nothing of it: to it ``torch.distributed`` is not initialized, and it does as in one process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import nn

from farm_client.data.seeds import derived_seed
from farm_client.executor.contract import Contract
from farm_client.executor.lightning_steps import is_lightning
from farm_client.executor.rank_links import Links
from farm_client.executor.samples import even_sizes
from farm_client.executor.step_metrics import Number, StepMetrics
from protocol.errors import FarmError

_BUCKET_BYTES: Final = 25 * 1024 * 1024
"""Gradients travel together up to this, as in DistributedDataParallel."""


class WentApart(FarmError):
    """The ranks' weights are not the same any more: something in the steps drew random numbers."""


class Ranks:
    """This process's place among those of its executor."""

    def __init__(self, rank: int, size: int, links: Links) -> None:
        self.rank = rank
        self.size = size
        self.links = links

    def share(self, samples: int) -> tuple[int, int]:
        """Return which rows of a batch are this rank's, from and to; none for some where there are too few."""
        sizes = rank_sizes(samples, self.size)
        start = sum(sizes[: self.rank])
        return start, start + sizes[self.rank]

    def rows(self, samples: int) -> tuple[int, int]:
        """Return the same, but where there are too few the first rank's, which weigh nothing here."""
        start, stop = self.share(samples)
        return (start, stop) if stop > start else (0, rank_sizes(samples, self.size)[0])

    def own(self, samples: int) -> int:
        """Return how many rows of a batch are this rank's."""
        start, stop = self.share(samples)
        return stop - start

    def add_up(self, parameters: Sequence[nn.Parameter], values: dict[str, Number], samples: int) -> dict[str, Number]:
        """Let each gradient be the whole batch's; return the values of this rank's rows with the whole batch's loss.

        Each rank comes with the gradients of its own rows' mean loss, a rank without rows with none.
        """
        share = self.own(samples) / samples
        loss = values.get("loss", 0.0)
        head = torch.zeros(1 + len(parameters), dtype=torch.float64)
        head[0] = float(loss) * share
        head[1:] = torch.tensor([float(p.grad is not None) for p in parameters])
        self.links.add_up(head)
        present = head[1:].tolist()
        touched = [parameter for parameter, ranks in zip(parameters, present, strict=True) if ranks]
        for parameter in touched:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.mul_(share)
        for bucket in _buckets([p.grad for p in touched if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self.links.add_up(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return {**values, "loss": float(head[0])}

    def agree(self, *, wish: bool) -> bool:
        """Return whether any rank wishes it; all meet here."""
        return b"1" in self.links.tell(b"1" if wish else b"0")

    def begin(self, means: StepMetrics, samples_done: int) -> None:
        """Begin, or go on from a snapshot, which is rank 0's: others draw numbers, and count metrics, of their own."""
        if self.rank:
            means.go_on({}, {})
            torch.manual_seed(derived_seed(torch.initial_seed(), self.rank, samples_done))

    def merged(self, means: StepMetrics, parameters: Iterable[torch.Tensor]) -> dict[str, float]:
        """Return the means over the samples of all ranks, who meet here at the end of an assignment.

        Raises: LossNotFinite; WentApart.
        """
        sums, counts = means.so_far()
        print_of_weights = [str(float(parameter.detach().double().sum())) for parameter in parameters]
        own = {"sums": sums, "counts": counts, "weights": print_of_weights}
        told = [json.loads(text) for text in self.links.tell(json.dumps(own).encode())]
        if any(one["weights"] != print_of_weights for one in told):
            raise WentApart(
                "the processes of this machine, which step by the same gradients, hold different weights: the task's "
                "steps draw random numbers; run it with --processes 1"
            )
        names = {name: None for one in told for name in one["sums"]}
        return {
            name: sum(one["sums"].get(name, 0.0) for one in told) / sum(one["counts"].get(name, 0) for one in told)
            for name in names
        }


def may_share_out(contract: Contract, model: nn.Module) -> bool:
    """Whether several processes can share a task's batches out.

    The farm takes the steps, each batch stands alone, and what is called beside the loss is torch's: what the task's
    code does to gradients in ``on_before_step``, or Lightning in its hooks, may draw random numbers.
    """
    own = ("train_step", "on_before_step", "initial_state")
    is_sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not (is_sparse or is_lightning(model) or any(contract.has(name) for name in own))


def rank_sizes(samples: int, ranks: int) -> list[int]:
    """Part a batch among ranks: as even as can be, nobody gets a single sample of more, later ranks perhaps none."""
    sizes = even_sizes(samples, max(-(-samples // ranks), min(samples, 2)))
    return sizes + [0] * (ranks - len(sizes))


def _buckets(gradients: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Part gradients into runs of one type that travel together."""
    buckets: list[list[torch.Tensor]] = []
    size_bytes = 0
    for gradient in gradients:
        if not buckets or gradient.dtype != buckets[-1][-1].dtype or size_bytes + gradient.nbytes > _BUCKET_BYTES:
            buckets.append([])
            size_bytes = 0
        buckets[-1].append(gradient)
        size_bytes += gradient.nbytes
    return buckets
