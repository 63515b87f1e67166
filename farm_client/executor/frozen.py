"""A task's frozen tensors in an executor: built from its base, or read once from a file of their own."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.messages import FROZEN_DIFFERS
from farm_client.executor.quantized import differing
from protocol.errors import FarmError


class FrozenDiffers(FarmError):
    """The frozen tensors are not those that were submitted: their file is needed."""

    code = FROZEN_DIFFERS


class BuiltFrozen:
    """Frozen tensors that the code has built as they were submitted, from the task's base: no file of them is here."""

    def __init__(self, tensors: ModelTensors) -> None:
        self._tensors = tensors
        self._known = _fingerprint(tensors.still())

    @classmethod
    def like(cls, tensors: ModelTensors, digest: str) -> BuiltFrozen:
        """Take the model's own for those of the file with this digest. Raises: FrozenDiffers if they are others."""
        if tensors.frozen_digest() != digest:
            raise FrozenDiffers
        return cls(tensors)

    def changed(self) -> list[str]:
        """Name those that the task's code has changed."""
        return [name for name, bits in _fingerprint(self._tensors.still()).items() if bits != self._known[name]]

    def restore(self) -> None:
        """See that an assignment starts from the same. Raises: FrozenDiffers if the task's code changed them."""
        if self.changed():
            raise FrozenDiffers


class FrozenTensors(BuiltFrozen):
    """Those of a file, which stays mapped: a machine's executors share its pages, a GPU holds the model's alone."""

    def __init__(self, path: Path, tensors: ModelTensors) -> None:
        """Copy the file into the model. Raises: CodeError if it is not of this model; FileNotFoundError."""
        self._file = safetensors.torch.load_file(path)
        tensors.load(self._file, tensors.still())
        if names := differing(tensors.model, {name: self._file[name] for name in tensors.beside}):
            raise CodeError(
                f"the base is quantized otherwise here than where it was submitted ({names[0]}): have build_model load "
                "a base that is quantized already, as save_pretrained writes it"
            )
        super().__init__(tensors)

    def restore(self) -> None:
        """Put back what the task's code changed."""
        if self.changed():
            self._tensors.load(self._file, self._tensors.still())
            self._known = _fingerprint(self._tensors.still())


def _fingerprint(tensors: TensorMap) -> dict[str, int]:
    """Return the wrapping sum of each tensor's bits: one pass where they are, and a single transfer from a GPU."""
    if not tensors:
        return {}
    sums = torch.stack([_bits(tensor).sum(dtype=torch.int64) for tensor in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    match flat.element_size():
        case 8:
            return flat.view(torch.int64)
        case 4:
            return flat.view(torch.int32)
        case 2:
            return flat.view(torch.int16)
        case _:
            return flat.view(torch.uint8)
