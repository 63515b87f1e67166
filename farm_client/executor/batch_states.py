"""What a task's code carries from batch to batch, such as an LSTM's hidden state, where rows are read in order.

Each batch is one row of every stream, and the next batch has the next rows: the state that a batch leaves goes into the
next one, without its graph (truncated backpropagation through time: Williams and Peng, Neural Computation 2 (1990)). A
state is known by the place in the data at which it goes on, so that whoever goes on there is given it, and nobody else:
each epoch, and each stretch of the data, begins with ``initial_state``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from farm_client.executor.contract import Contract, LossValue
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import Piece
from farm_client.executor.step_metrics import Number
from protocol.recipe import DataOrder, Mode

NAME: Final = "batch_states"
"""Of the states among the parts of an inner loop's state."""
_PLAIN: Final = (bool, int, float, str, type(None))


class BatchStates:
    """The state of one assignment's batches. ``state_dict`` has the one that the last batch left, by its place."""

    def __init__(self, contract: Contract, model: nn.Module, pieces: Sequence[Piece], epoch: int, streams: int) -> None:
        """``streams`` is the number of samples of each batch. Raises: CodeError if the rows are in no order."""
        refuse_without_order(contract, Mode.WEIGHTS, all(piece.stride for piece in pieces))
        self._contract = contract
        self._model = model
        self._streams = streams
        self._epoch = epoch
        self._first_steps: list[int] = []
        self._first_rows: list[int] = []
        steps = 0
        for piece in pieces:
            self._first_steps.append(steps)
            self._first_rows.append(piece.first_row + piece.start // streams)
            steps += (piece.stop - piece.start) // streams
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] = {}

    @classmethod
    def of(
        cls, contract: Contract, model: nn.Module, pieces: Sequence[Piece], epoch: int, streams: int
    ) -> BatchStates | None:
        """Return the states of an assignment; None of code that carries none. Raises: CodeError."""
        return cls(contract, model, pieces, epoch, streams) if contract.has("initial_state") else None

    def loss(self, batch: Any, step: int) -> LossValue:
        """Return the loss of the assignment's ``step``-th batch, from 1. A step may ask for it again."""
        value, state = self._contract.loss_with_state(self._model, batch, self._state_before(step))
        self._leave(state, step)
        return value

    def train_step(self, batch: Any, optimizers: Any, step: int) -> dict[str, Number]:
        """Have the code's ``train_step`` take the ``step``-th step, from 1; return its metrics."""
        before = self._state_before(step)
        values, state = self._contract.train_step_with_state(self._model, batch, optimizers, step - 1, before)
        self._leave(state, step)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch by the place where it goes on; before the first one, what was given."""
        return self._after or self._before

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take states on, of which at most one is that of the place where these batches go on."""
        device = next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))
        self._before, self._after = {place: moved_to(device, state) for place, state in state_dict.items()}, {}

    def _state_before(self, step: int) -> Any:
        place = self._place(self._row(step))
        if place in self._after:  # the step is a new one
            self._before, self._after = self._after, {}
        if place in self._before:
            return self._before[place]
        return self._contract.initial_state(self._model, self._streams)

    def _leave(self, state: Any, step: int) -> None:
        self._after = {self._place(self._row(step) + 1): without_graph(state)}

    def _row(self, step: int) -> int:
        """Return the row of the first stream that is in a step's batch."""
        piece = bisect_right(self._first_steps, step - 1) - 1
        return self._first_rows[piece] + step - 1 - self._first_steps[piece]

    def _place(self, row: int) -> str:
        return f"{self._epoch}:{row}"


def refuse_without_order(contract: Contract, mode: Mode, in_order: bool) -> None:
    """Raises: CodeError, if the code carries a state and no batch is the next one of another, or there is no loss."""
    if not contract.has("initial_state"):
        return
    if mode is Mode.GRADIENTS:
        raise CodeError(
            "initial_state carries a state from batch to batch, and in gradients mode no batch comes before another: "
            f"use --mode weights --order {DataOrder.SEQUENTIAL}"
        )
    if not in_order:
        raise CodeError(
            "initial_state carries a state from batch to batch, and the rows are shuffled: add --order "
            f"{DataOrder.SEQUENTIAL}, or leave the function out"
        )
    if not (contract.has("loss") or contract.has("train_step")):
        raise CodeError("initial_state is there, and no loss(model, batch, state) that would be given what it returns")


def without_graph(state: Any, where: str = "the state") -> Any:
    """Return a state with its tensors detached. Raises: CodeError if no other client could be given it."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    if type(state) in (tuple, list):
        return type(state)(without_graph(value, f"{where}[{number}]") for number, value in enumerate(state))
    if type(state) is dict and all(type(name) in (str, int) for name in state):
        return {name: without_graph(value, f"{where}[{name!r}]") for name, value in state.items()}
    if type(state) in _PLAIN:
        return state
    raise CodeError(
        f"{where} after a batch is a {type(state).__name__}: make it of tensors, numbers, texts and None, in tuples, "
        "lists and dicts"
    )


def moved_to(device: torch.device, state: Any) -> Any:
    """Return a state that ``without_graph`` has made with its tensors on a device."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, tuple | list):
        return type(state)(moved_to(device, value) for value in state)
    if isinstance(state, dict):
        return {name: moved_to(device, value) for name, value in state.items()}
    return state
