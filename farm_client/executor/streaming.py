"""Streaming DiLoCo on a client: a local model goes on from round to round, and one fragment of it is sent in each.

In round t fragment p = t mod P travels: its pseudo-gradient is the version's value of it less the local one, and covers
all steps since it was last in step with the version. Once the farm has stepped it, the local values are mixed in,

    local_p <- alpha * local_p + (1 - alpha) * version_p

and all other fragments go on as they are. With an overlap of tau steps the last tau of a round are taken after its
fragment is sent, while it travels: they change the local values alone, and the fragment brings them in its next turn.
Source: Douillard et al., arXiv:2501.18512, algorithm 2; a version of the farm is whole, and a round changes one
fragment of it. A client without a local model begins from the version.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.messages import LoadTask
from farm_client.executor.overlap import NO_OVERLAP, Overlap
from farm_client.executor.training import Trained
from protocol.fragments import fragment_of_round, fragments_of

_IN_STEP: Final = 0.0


class LocalModel:
    """The parameters of one client between rounds. It costs the model's memory once more."""

    def __init__(
        self, tensors: ModelTensors, fragments: dict[str, int], mix: float = _IN_STEP, overlap_steps: int = 0
    ) -> None:
        """``fragments`` has the fragment of each parameter; ``mix`` is alpha, ``overlap_steps`` tau."""
        self._tensors = tensors
        self._fragments = fragments
        self._count = max(fragments.values(), default=0) + 1
        self._mix = mix
        self._overlap_steps = overlap_steps
        self._round = -1
        self._local: TensorMap = {}

    @classmethod
    def of(cls, order: LoadTask, tensors: ModelTensors) -> LocalModel:
        """Return that of a task; of one whose updates are whole nothing is kept. Raises: CodeError."""
        if order.fragments == 1:
            return cls(tensors, {})
        try:
            fragments = fragments_of(tensors.layout(), order.fragments, order.fragment_pattern)
        except ValueError as error:
            raise CodeError(f"{error}: lower fragments in the recipe") from error
        return cls(tensors, fragments, order.fragment_mix, order.fragment_overlap_steps)

    def begin(self, number: int) -> None:
        """Begin a round: what the model holds, the version, becomes what this client goes on from.

        An earlier round than the last one is of a farm that went back: then it begins from the version again.
        """
        if number < self._round:
            self._local = {}
        with torch.no_grad():
            for name, local in self._local.items():
                parameter = self._tensors.parameters[name]
                if (share := self._share_of_local(name, number)) is None:
                    parameter.copy_(local)
                elif share:
                    parameter.lerp_(local, share)

    def overlap(self, number: int) -> Overlap:
        """Return how many steps of the round its update does not wait for, and what the update is of."""
        if not self._overlap_steps:
            return NO_OVERLAP
        turn = self._of_round(number)
        return Overlap(self._overlap_steps, frozenset(n for n, fragment in self._fragments.items() if fragment == turn))

    def end(self, number: int) -> None:
        """End the round: keep what the steps made of the model, where it is to go on from there."""
        self._round = number
        for name in self._fragments:
            parameter, kept = self._tensors.parameters[name], self._local.get(name)
            self._local[name] = parameter.detach().clone() if kept is None else kept.copy_(parameter.detach())

    def told(self, number: int, trained: Trained) -> Trained:
        """Return what the round tells of an update: its fragment, and the buffers."""
        untold = {name for name, fragment in self._fragments.items() if fragment != self._of_round(number)}
        if not untold:
            return trained
        update = {name: tensor for name, tensor in trained.update.items() if name not in untold}
        # What no step of this round touched, one since its last turn may have.
        untouched = {name for name in trained.untouched - untold if not update[name].any()}
        return replace(trained, update=update, untouched=frozenset(untouched | untold))

    def _share_of_local(self, name: str, number: int) -> float | None:
        """Return how much of a parameter is to stay local: all of it (None) unless it travelled since.

        What this client has told in the same round is not in the version yet, and must not be told again.
        """
        fragment = self._fragments[name]
        if number == self._round:
            return _IN_STEP if fragment == self._of_round(number) else None
        rounds = range(self._round, min(number, self._round + self._count))
        return self._mix if any(self._of_round(one) == fragment for one in rounds) else None

    def _of_round(self, number: int) -> int:
        return fragment_of_round(number, self._count)
