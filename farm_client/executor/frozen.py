"""A task's frozen tensors in an executor: read once from a file of their own, and put back if its code changed them."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from farm_client.executor.layout import ModelTensors, TensorMap


class FrozenTensors:
    """The file stays mapped, so that all executors of a machine share its pages, and a GPU holds the model's alone."""

    def __init__(self, path: Path, tensors: ModelTensors) -> None:
        """Copy the file into the model. Raises: CodeError if it is not of this model; FileNotFoundError."""
        self._tensors = tensors
        self._file = safetensors.torch.load_file(path)
        self._restore()

    def changed(self) -> list[str]:
        """Name those that the task's code has changed."""
        return [name for name, bits in _fingerprint(self._tensors.still()).items() if bits != self._known[name]]

    def restore(self) -> None:
        """Put back what the task's code changed, so that every assignment starts from the same."""
        if self.changed():
            self._restore()

    def _restore(self) -> None:
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
