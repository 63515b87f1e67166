"""Rounds of clients and what the server makes of them, without the sockets between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import safetensors.torch
import torch

from coordinator.numerics.inner_state import InnerStateMean
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.messages import Piece
from farm_server.tensors.task_tensors import state_file
from protocol.codecs import BytesReader
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, OuterOptimizer
from protocol.tensors import parse_layout
from tests.farm_client.executor.bench_task import Bench

Round = tuple[int, Sequence[tuple[Piece, ...]]]
"""Its epoch, and the pieces of each client."""


def train_on_the_farm(clients: Sequence[Bench], rounds: Iterable[Round]) -> dict[str, torch.Tensor]:
    """Return the weights after these rounds. A state that is carried goes from round to round with them."""
    layout = parse_layout(clients[0].weights)
    weights = safetensors.torch.load(clients[0].weights)
    outer = OuterStep(OuterOptimizer(), weights, layout)
    updates, states = WeightedMean(layout), InnerStateMean()
    state: bytes | None = None
    for number, (epoch, pieces) in enumerate(rounds):
        updates.reset()
        states.reset()
        file = safetensors.torch.save(weights)
        for client, mine in zip(clients, pieces, strict=True):
            done = client.train(
                round=number,
                epoch=epoch,
                weights=file,
                weights_digest=digest_bytes(file),
                inner_state=state,
                pieces=mine,
            )
            assert done.update is not None
            updates.fold(BytesReader(done.update), done.samples)
            if client.inner_state is InnerState.CARRIED:
                states.fold(BytesReader(done.update), done.samples)
        outer.step(updates.result())
        if clients[0].inner_state is InnerState.CARRIED:
            state = b"".join(state_file(*states.result()))
    return weights
