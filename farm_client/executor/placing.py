"""Where a task's model goes once its code has built it: whole on this process's device, or in parts on all ranks'."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

from farm_client.executor.contract import Contract
from farm_client.executor.devices import device_memory_bytes
from farm_client.executor.failures import calling
from farm_client.executor.layout import ModelTensors
from farm_client.executor.means import remark
from farm_client.executor.messages import LoadTask
from farm_client.executor.ranks import Ranks, may_share_out
from farm_client.executor.vram import vram_share
from protocol.recipe import InnerState, Precision

SHARD_VARIABLE: Final = "AIFARM_SHARD"
"""When the owner wants models in parts: ``auto``, ``always`` or ``never``."""

STATE_COPIES: Final = 5
"""Of a parameter that is trained: itself, the version that it began with, its gradient, and Adam's two moments."""
_READING: Final = "reading the model's tensors"

Place = Callable[[Contract, nn.Module, LoadTask, torch.device], ModelTensors]
"""Brings a model that was built to where it is trained, and names its tensors. Raises: CodeError; memory errors."""


def on_device(contract: Contract, model: nn.Module, order: LoadTask, device: torch.device) -> ModelTensors:
    """Have the whole model on this process's device."""
    with calling(_READING, contract.code_dir):
        tensors = ModelTensors.of(model.to(device))
    if order.compile:
        model.compile()  # in place: the tensors keep their names
    return tensors


class Placing:
    """Has several ranks hold a model together where the owner, or the size of a device's memory, wants it."""

    def __init__(self, ranks: Ranks, wish: str | None = None) -> None:
        self._ranks = ranks
        self._wish = os.environ.get(SHARD_VARIABLE, "auto") if wish is None else wish

    def __call__(self, contract: Contract, model: nn.Module, order: LoadTask, device: torch.device) -> ModelTensors:
        """Place a model. All ranks come to the same decision, of the one whose device is smallest."""
        if self._wish == "never" or not may_share_out(contract, model):
            return on_device(contract, model, order, device)
        with calling(_READING, contract.code_dir):
            whole = ModelTensors.of(model)
        is_wanted = self._wish == "always" or self._ranks.agree(wish=self._is_too_large(whole, device))
        if not is_wanted:
            return on_device(contract, model, order, device)
        if (why := why_whole(contract, whole, order)) is not None:
            self._tell(f"this task's model can't be held in parts: {why}; each process holds all of it")
            return on_device(contract, model, order, device)
        from farm_client.executor.process_group import join_group  # noqa: PLC0415 - a quarter of a second
        from farm_client.executor.shards import Shards  # noqa: PLC0415 - as above

        rank, size, links = self._ranks.rank, self._ranks.size, self._ranks.links
        digest = whole.frozen_digest()
        join_group(links, rank, size, device, Path(order.scratch_dir))
        shards = Shards(model, rank, size, links, device)
        self._tell(f"this machine's {size} processes hold the model in parts")
        return replace(whole.in_parts(shards), whole_digest=digest)

    def _tell(self, text: str) -> None:
        if self._ranks.rank == 0:  # all ranks write into one log
            remark(text)

    def _is_too_large(self, whole: ModelTensors, device: torch.device) -> bool:
        if device.type == "cpu":
            return self._ranks.size * needed_bytes(whole) > psutil.virtual_memory().available
        return needed_bytes(whole) > device_memory_bytes(device) * vram_share()


def needed_bytes(whole: ModelTensors) -> int:
    """Return what training takes of a device beside activations, where one process holds the model."""
    trained = sum(parameter.nbytes for parameter in whole.parameters.values())
    return STATE_COPIES * trained + sum(tensor.nbytes for tensor in whole.still().values())


def why_whole(contract: Contract, whole: ModelTensors, order: LoadTask) -> str | None:
    """Return what of a task wants a whole model on each rank, in a clause; None if nothing does."""
    wants = {
        "on_epoch_end is given all of it": contract.has("on_epoch_end"),
        "its layers are quantized": bool(whole.beside),
        "versions carry the inner optimizer's state": order.inner_state is InnerState.CARRIED,
        "a client goes on from fragments of its own": order.fragments > 1,
        "control variates are kept": order.scaffold_clients > 0,
        "fp16 scales losses": order.precision is Precision.FP16,
        "a parameter is a single number, or not contiguous": any(
            not parameter.ndim or not parameter.is_contiguous() for parameter in whole.model.parameters()
        ),
    }
    return next((why for why, holds in wants.items() if holds), None)
