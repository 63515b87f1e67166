"""Speculative execution of the next round: its steps are begun before its order is here, on the foreseen version.

A client that did all of a round knows the version that follows if nothing else comes in, and the farm has said which
samples would be next. An order that says the same adopts the steps; for any other one, and for any error, all that
they changed is put back, and the order is carried out as if nothing had been begun: to the bits of a client that waits.

Source of the principle: Kung and Robinson, "On Optimistic Methods for Concurrency Control", ACM TODS 6(2), 1981: work
on a guess, validate it before anything of it is seen, and else begin anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from farm_client.executor.channel import Channel
from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.layout import ModelTensors, TensorMap, apart
from farm_client.executor.messages import LoadTask, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.suspension import Suspension
from protocol.compression import CodecName
from protocol.recipe import InnerState, Mode

MOST_MISSES: Final = 2
"""After so many guesses that were wrong a task's executor waits for its orders."""
_OF_THE_ORDER: Final = ("assignment_id", "weights_digest", "snapshot_path", "failed_step_bytes", "upcoming")
"""What an order adds to a guess, or what is compared by itself."""


class Superseded(Exception):
    """What came is not what was guessed."""


def allows_guesses(order: LoadTask) -> bool:
    """Whether one client's update may make a task's next version by itself, with nothing beside the weights."""
    is_plain = order.mode is Mode.WEIGHTS and order.update_codec.name is CodecName.NONE and order.fragments == 1
    return is_plain and order.inner_state is not InnerState.CARRIED


def guessed(order: Run) -> Run:
    """Return the order that follows if the round of this one is committed with its update alone."""
    samples = sum(piece.stop - piece.start for piece in order.upcoming)
    return Run(
        assignment_id="",
        kind=order.kind,
        round=order.round + 1,
        epoch=order.epoch,
        weights_digest="",
        samples_before=order.samples_before + order.round_samples,
        round_samples=samples,
        pieces=order.upcoming,
    )


class Speculation:
    """Steps that wait for their order: it is looked for after each step, and waited for at their end."""

    def __init__(self, guess: Run, channel: Channel, progress: ProgressReporter, written: Callable[[], None]) -> None:
        """``written`` waits until the last update is written and its version hashed."""
        self.guess = guess
        self.order: Run | None = None
        """The order that adopted it."""
        self.holds: Callable[[str], bool] = lambda _digest: False
        """Whether the steps began on the version of a digest."""
        self.on_adopted: Callable[[Run], None] = lambda _order: None
        self._channel = channel
        self._progress = progress
        self._written = written

    def advance(self, samples: int) -> None:
        """Count samples as done. Raises: Superseded; ProtocolError, ValidationError for an order of no form."""
        self._progress.advance(samples)
        if self.order is None and self._channel.has_order():
            self.adopted()

    def saved(self) -> None:
        """Report a snapshot."""
        self._progress.saved()

    @property
    def suspension(self) -> Suspension | None:
        """Return where an order to suspend is seen; before the guess is adopted it supersedes it, as any other."""
        return self._progress.suspension

    def adopted(self) -> Run:
        """Wait for the order that says the same, and return it. Raises: Superseded, and the order stays there."""
        if self.order is None:
            order = self._channel.next_order()
            if not isinstance(order, Run) or not self._is_guessed(order):
                raise Superseded
            self._channel.receive()
            self.order = order
            self._progress.adopt(order.assignment_id)
            self.on_adopted(order)
        return self.order

    def _is_guessed(self, order: Run) -> bool:
        self._written()
        alike = {name: getattr(self.guess, name) for name in _OF_THE_ORDER}
        return self.holds(order.weights_digest) and order.model_copy(update=alike) == self.guess


class _Copied(NamedTuple):
    """A tensor's place in a copied tree."""

    number: str
    device: torch.device


@dataclass(frozen=True)
class Before:
    """What speculative steps may change that no order sets: a kept inner loop's state, and buffers that never travel.

    On the CPU, so that it takes no room on a card.
    """

    loop: InnerLoop | None
    _trees: Mapping[str, Any]
    copies: TensorMap
    """Memory for the next one's, unless it was put back."""
    _buffers: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, loop: InnerLoop | None, tensors: ModelTensors, into: TensorMap) -> Before:
        """Copy it, ``into`` memory of an earlier one's where that fits. Raises: memory errors."""
        found: TensorMap = {}
        parts = {} if loop is None else loop.stateful()
        trees = {name: _copied(_state_of(part), found) for name, part in parts.items()}
        known = {*tensors.all(), *tensors.tied}
        buffers = {name: buffer for name, buffer in tensors.model.named_buffers() if name not in known}
        trees["buffers"] = _copied(buffers, found)
        return cls(loop, trees, apart(found, into), buffers)

    def restore(self) -> InnerLoop | None:
        """Put it back; returns the inner loop."""
        for name, part in ({} if self.loop is None else self.loop.stateful()).items():
            _give(part, self._restored(self._trees[name]))
        for name, tensor in self._restored(self._trees["buffers"]).items():
            self._buffers[name].copy_(tensor)
        return self.loop

    def _restored(self, tree: Any) -> Any:
        match tree:
            case _Copied():
                return self.copies[tree.number].to(tree.device)
            case dict():
                return {key: self._restored(value) for key, value in tree.items()}
            case list():
                return [self._restored(value) for value in tree]
            case tuple():
                return tuple(self._restored(value) for value in tree)
        return tree


def _state_of(part: Any) -> Any:
    """Return a part's state as it is live; torch's own optimizers cast it when they load a ``state_dict``."""
    if not isinstance(part, torch.optim.Optimizer):
        return part.state_dict()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in part.param_groups]
    return {"state": dict(part.state), "groups": groups}


def _give(part: Any, state: Any) -> None:
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(state)
        return
    part.state.clear()
    part.state.update(state["state"])
    for group, before in zip(part.param_groups, state["groups"], strict=True):
        for key in group.keys() - before.keys() - {"params"}:
            del group[key]
        group.update(before)


def _copied(value: Any, found: TensorMap) -> Any:
    """Return a tree of its own, with its tensors in ``found``."""
    match value:
        case torch.Tensor():
            number = str(len(found))
            found[number] = value
            return _Copied(number, value.device)
        case dict():
            return {key: _copied(item, found) for key, item in value.items()}
        case list():
            return [_copied(item, found) for item in value]
        case tuple():
            return tuple(_copied(item, found) for item in value)
    return copy.deepcopy(value)
