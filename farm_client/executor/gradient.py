"""A batch's gradient: the loss, its checks, and the backward pass; in parts where the whole does not fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from farm_client.executor.batch_states import BatchStates
from farm_client.executor.contract import Contract, LossValue
from farm_client.executor.devices import free_cached_memory
from farm_client.executor.failures import CodeError, LossNotFinite, calling, is_out_of_memory
from farm_client.executor.layout import ModelTensors
from farm_client.executor.means import remark
from farm_client.executor.messages import Piece
from farm_client.executor.precision import Autocast
from farm_client.executor.ranks import Ranks
from farm_client.executor.samples import even_sizes
from farm_client.executor.step_metrics import Number, check_loss, left_there

_NORM_SAMPLES: Final = 2
"""BatchNorm needs as many samples at a time."""
_SMALLEST_SCALE: Final = 2.0**-10


class BatchGradient:
    """Adds the gradients of batches' mean losses to a model's parameters.

    Where the memory is too short for a batch it is taken in two parts, or four, and so on, which is remembered. The
    gradient is the mean of the parts' own, weighted by samples: that of the whole batch, unless the model itself looks
    at more than one sample at a time, as BatchNorm does.
    """

    def __init__(self, contract: Contract, tensors: ModelTensors, autocast: Autocast) -> None:
        self._contract = contract
        self._tensors = tensors
        self._autocast = autocast
        self._own_scaler = autocast.new_scaler()
        self._largest_part: int | None = None
        self.backward: Callable[[torch.Tensor], None] = torch.autograd.backward
        """Adds the gradient of a loss to the parameters; a loop with hooks around that has one of its own."""
        self.states: BatchStates | None = None
        """What the assignment's batches carry from one to the next, if they do. Such a batch is not taken in parts: how
        its state would be parted, only the code knows."""
        self.ranks: Ranks | None = None
        """The processes that share each batch out, if there are several."""
        has_norm = any(isinstance(module, _BatchNorm) for module in tensors.model.modules())
        self._smallest_part = _NORM_SAMPLES if has_norm else 1

    def begin(self, pieces: Sequence[Piece], epoch: int, streams: int) -> BatchStates | None:
        """Begin an assignment; return what its batches carry, if they do. Raises: CodeError if they can't."""
        self.states = BatchStates.of(self._contract, self._tensors.model, pieces, epoch, streams)
        return self.states

    @property
    def is_mixed(self) -> bool:
        """Return whether forward passes compute in another format than that of the model's tensors."""
        return self._autocast.dtype is not None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a step that the task's code takes as a whole."""
        return self._autocast.between_steps()

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """Return a scaler of losses for a loop that steps by these gradients; None where none is needed."""
        return self._autocast.new_scaler()

    def add_exact(self, batch: Any, samples: int, step: int) -> dict[str, Number]:
        """As ``add``, and not scaled: a batch whose scaled gradient overflows is taken again at half the scale.

        Raises: LossNotFinite if it overflows at any scale.
        """
        scaler = self._own_scaler
        if scaler is None:
            return self.add(batch, samples, step)
        holder = torch.optim.SGD(self._tensors.parameters.values())  # what a scaler takes; it never steps
        while True:
            values = self.add(batch, samples, step, scaler)
            with calling("unscaling the gradients", self._contract.code_dir):
                scaler.unscale_(holder)
            scale = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() >= scale:
                return values
            if scale < _SMALLEST_SCALE:
                raise LossNotFinite(f"the gradient of step {step} of the round is too large for float16: use bf16")
            self._tensors.clear_gradients()

    def add(self, batch: Any, samples: int, step: int, scaler: torch.amp.GradScaler | None = None) -> dict[str, Number]:
        """Add the gradient of the batch's mean loss to the parameters, and return the loss and its metrics.

        With a ``scaler`` the gradient is scaled, and may have overflowed.
        No parameter has a gradient yet. A loss on an accelerator stays there, unchecked: reading it would wait for all
        that the accelerator has to do. Raises: CodeError, LossNotFinite, memory errors of what can't be parted further.
        """
        if self.ranks is None:
            return self._add_own(batch, samples, step, scaler)
        own = self.ranks.own(samples)
        if self._tensors.shards is not None:  # all do the same passes, for each moves parts of the model
            return self.ranks.add_up([], self._add_mean(batch, own / samples, step, scaler), samples)
        values = self._add_own(batch, own, step, scaler) if own else {}
        return self.ranks.add_up(list(self._tensors.parameters.values()), values, samples)

    def _add_own(self, batch: Any, samples: int, step: int, scaler: torch.amp.GradScaler | None) -> dict[str, Number]:
        """Add the gradient of the rows that this process has, in parts if its memory is too short for them."""
        while True:
            sizes = self._sizes(samples)
            try:
                return self._added(_parted(batch, sizes), sizes, step, scaler)
            except BaseException as error:
                if not is_out_of_memory(error) or not self._can_part_further(batch, samples, max(sizes)):
                    raise
            # Not before the error is gone: it holds on to the memory of what failed.
            self._tensors.clear_gradients()
            free_cached_memory(self._autocast.device)

    def _sizes(self, samples: int) -> list[int]:
        return [samples] if self._largest_part is None else even_sizes(samples, self._largest_part)

    def _can_part_further(self, batch: Any, samples: int, failed: int) -> bool:
        """Note that parts of ``failed`` samples don't fit; return whether smaller ones can be tried."""
        if self.states is not None:
            return False
        largest = max(failed // 2, self._smallest_part)
        sizes = even_sizes(samples, largest)
        if max(sizes) >= failed or _parted(batch, sizes) == [batch]:
            return False
        self._largest_part = largest
        remark(f"this machine's memory is too short for {failed} samples at a time: {max(sizes)} at a time from now on")
        return True

    def _added(
        self, parts: list[Any], sizes: list[int], step: int, scaler: torch.amp.GradScaler | None
    ) -> dict[str, Number]:
        if len(parts) == 1:
            return self._add_mean(parts[0], 1.0, step, scaler)
        total = sum(sizes)
        sums: dict[str, Number] = {}
        for part, size in zip(parts, sizes, strict=True):
            share = size / total
            for name, value in self._add_mean(part, share, step, scaler).items():
                sums[name] = sums.get(name, 0.0) + value * share
        return sums

    def _add_mean(self, batch: Any, share: float, step: int, scaler: torch.amp.GradScaler | None) -> dict[str, Number]:
        """Add this share of the gradient of a batch's mean loss; return the loss, whole, and the metrics."""
        with self._autocast():
            value = self._loss(batch, step)
        number = left_there(value.loss)
        if not isinstance(number, torch.Tensor):
            check_loss(number, step)
        if not value.loss.requires_grad:
            raise CodeError(
                "the loss does not depend on the model's parameters: compute it from model(...) with gradients"
            )
        with calling("the loss's backward pass", self._contract.code_dir):
            loss = value.loss if share == 1.0 else value.loss * share
            self.backward(loss if scaler is None else scaler.scale(loss))
        return {"loss": number, **value.metrics}

    def _loss(self, batch: Any, step: int) -> LossValue:
        if self.states is not None:
            return self.states.loss(batch, step)
        if (shards := self._tensors.shards) is None:
            return self._contract.loss(self._tensors.model, batch)

        def loss() -> tuple[torch.Tensor, LossValue]:
            value = self._contract.loss(self._tensors.model, batch)
            value = replace(value, loss=value.loss.clone())  # FSDP warns of a loss that is a view of another tensor
            return value.loss, value

        value: LossValue = shards.within(loss)
        return value


class _Whole(Exception):
    """A batch holds something that does not have a row for each sample."""


def _parted(batch: Any, sizes: list[int]) -> list[Any]:
    """Return a batch's rows in parts of these sizes; the batch alone if it can't be parted, or need not be."""
    if len(sizes) == 1:
        return [batch]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    try:
        return [_rows(batch, slice(start, start + size), sum(sizes)) for start, size in zip(starts, sizes, strict=True)]
    except _Whole:
        return [batch]


def _rows(batch: Any, rows: slice, samples: int) -> Any:
    """Return some rows of a batch of ``samples``. Raises: _Whole."""
    match batch:
        case torch.Tensor() if batch.ndim and len(batch) == samples:
            return batch[rows]
        case Mapping():
            return {name: _rows(value, rows, samples) for name, value in batch.items()}
        case list() if len(batch) == samples and all(isinstance(text, str) for text in batch):
            return batch[rows]
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*(_rows(value, rows, samples) for value in batch))
        case tuple() | list():
            return type(batch)(_rows(value, rows, samples) for value in batch)
        case None:
            return None
    raise _Whole
