"""The version of the weights that an executor was last given: each assignment of it begins from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from farm_client.executor.foreseen import FileForm, Foreseen, foresee
from farm_client.executor.frozen import BuiltFrozen, FrozenTensors
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.messages import LoadTask, Run
from protocol.errors import NotFound


class HeldWeights:
    """A version for one model, which holds it after ``take``; frozen tensors may have come in a file of their own."""

    def __init__(self, tensors: ModelTensors, order: LoadTask) -> None:
        """``order`` says where the frozen tensors come from. Raises: as ``give_to``."""
        self.base: TensorMap = {}
        """The version's tensors, on the model's device."""
        self._digest = ""
        self._form: FileForm | None = None
        """That of the task's weights files, once one came."""
        self._foreseen: Foreseen | None = None
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
        is_plain = all(parameter.dtype == torch.float32 for parameter in self._tensors.parameters.values())
        if self._form is None or not self._foresees or not is_plain:
            return None
        self._foreseen = foresee(self.base, update, self._tensors.buffer_names, samples, self._form)
        return self._foreseen.digest

    def _recall(self, order: Run) -> None:
        """Hold the version that was foreseen, if the order is to begin with that."""
        foreseen, self._foreseen = self._foreseen, None
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
        device = next(iter(self._tensors.parameters.values())).device
        self.base = {name: tensor.to(device) for name, tensor in weights.items()}
        self._digest = digest
