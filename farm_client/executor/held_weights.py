"""The version of the weights that an executor was last given: each assignment of it begins from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from farm_client.executor.foreseen import FileForm, foresee
from farm_client.executor.frozen import BuiltFrozen, FrozenTensors
from farm_client.executor.layout import ModelTensors, TensorMap, same_values
from farm_client.executor.messages import LoadTask, Run
from protocol.errors import NotFound


@dataclass(frozen=True)
class _Foreseen:
    """A version that the farm may make, on the model's device."""

    digest: str
    tensors: TensorMap


class HeldWeights:
    """A version for one model, which holds it after ``take``; frozen tensors may have come in a file of their own."""

    def __init__(self, tensors: ModelTensors, order: LoadTask) -> None:
        """``order`` says where the frozen tensors come from. Raises: as ``give_to``."""
        self.base: TensorMap = {}
        """The version's tensors, on the model's device."""
        self._digest = ""
        self._form: FileForm | None = None
        """That of the task's weights files, once one came."""
        self._foreseen: _Foreseen | None = None
        self._went_on = False
        """Whether the version is one that no order named yet."""
        self._foresees = True
        self._frozen_path = None if order.frozen_path is None else Path(order.frozen_path)
        self._frozen_digest = order.frozen_digest
        self.give_to(tensors)

    def give_to(self, tensors: ModelTensors) -> None:
        """Serve this model from now on: the same as before, built anew.

        Raises: as ``take_frozen``; FrozenDiffers if it builds other frozen tensors than those that came without a file.
        """
        self._tensors = tensors
        self.frozen: BuiltFrozen | None = None
        if self._frozen_path is not None:
            self.take_frozen(self._frozen_path)
        elif self._frozen_digest is not None:
            self.frozen = BuiltFrozen.like(tensors, self._frozen_digest)

    def take_frozen(self, path: Path) -> None:
        """Take the frozen tensors from a file: orders come without them then.

        Raises: CodeError if they are not this model's; FileNotFoundError.
        """
        self._frozen_path, self.frozen = path, FrozenTensors(path, self._tensors)

    def take(self, order: Run) -> None:
        """Put the order's version into the model, from the order or from memory.

        Raises: NotFound if neither has it; CodeError if it is not this model's; FileNotFoundError.
        """
        if self._went_on and not order.weights_digest:  # a guess
            self.restore()
            return
        self._recall(order)
        if order.weights is not None:
            self._hold(order.weights_digest, safetensors.torch.load(order.weights))
        elif order.weights_path is not None:
            self._hold(order.weights_digest, safetensors.torch.load_file(order.weights_path))
            self._form = self._form or FileForm.of(Path(order.weights_path))
        elif order.weights_digest != self._digest:
            raise NotFound(f"the executor does not hold weights {order.weights_digest[:12]}; send them with the order")
        self.restore()

    def foresee(self, update: TensorMap, samples: int) -> str | None:
        """Compute what the farm makes of the version with this update alone; return its digest, an order may name it.

        None for weights so small that they come in messages, for those that are not all float32, and once the farm
        has made something else: it averages otherwise than plainly then.
        """
        if (form := self._usable_form()) is None:
            return None
        tensors = foresee(self.base, update, self._tensors.buffer_names, samples)
        self._foreseen = _Foreseen(form.digest(tensors), tensors)
        return self._foreseen.digest

    def go_on(self, update: TensorMap, samples: int) -> Callable[[], str] | None:
        """Hold what ``foresee`` would foresee in the place of the version, which is needed no more; None as there.

        What is returned computes its digest, on any thread, and must have done so before an order may name it.
        """
        if (form := self._usable_form()) is None:
            return None
        tensors = foresee(self.base, update, self._tensors.buffer_names, samples)
        self.base, self._digest, self._went_on = tensors, "", True

        def digest() -> str:
            self._digest = form.digest(tensors)
            return self._digest

        return digest

    def is_held(self, digest: str) -> bool:
        """Whether an order of this version needs no weights."""
        return digest == self._digest

    def confirm(self) -> None:
        """Note that an order named the version that it went on with: the next one may name another."""
        self._went_on = False

    def changed(self, unsent: Mapping[str, torch.Tensor]) -> list[str]:
        """Name what of ``unsent`` and of the frozen tensors is not the version's any more."""
        frozen = [] if self.frozen is None else self.frozen.changed()
        looked_at = {**unsent, **(self._tensors.frozen if self.frozen is None else {})}
        return frozen + [n for n, tensor in looked_at.items() if not same_values(tensor.detach(), self.base[n])]

    def _usable_form(self) -> FileForm | None:
        is_plain = all(parameter.dtype == torch.float32 for parameter in self._tensors.parameters.values())
        return self._form if self._foresees and is_plain else None

    def _recall(self, order: Run) -> None:
        """Hold the version that was foreseen, if the order is to begin with that."""
        foreseen, self._foreseen = self._foreseen, None
        if self._went_on:
            self._foresees, self._went_on = order.weights_digest == self._digest, False
        if foreseen is None or order.weights_digest == self._digest:
            return
        self._foresees = order.weights_digest == foreseen.digest
        if self._foresees:
            self.base, self._digest = foreseen.tensors, foreseen.digest

    def restore(self) -> None:
        """Put the version into the model again. Raises: CodeError if it is not this model's; FrozenDiffers."""
        if self.frozen is None:
            self._tensors.load(self.base)
        else:
            self.frozen.restore()
            self._tensors.load(self.base, self._tensors.changing())

    def _hold(self, digest: str, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep a version. On the CPU that of a file stays the mapped file, whose pages all executors share."""
        self.base = self._tensors.placed(weights)
        self._digest = digest
