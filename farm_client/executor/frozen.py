"""A task's frozen tensors in an executor: built from its base, or read once from a file of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import safetensors.torch
import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.messages import FROZEN_DIFFERS
from farm_client.executor.own_parts import own_part
from farm_client.executor.quantized import differing
from protocol.errors import FarmError

_WORD_BYTES: Final = 4
_PART_WORDS: Final = 1 << 16
"""Words that are multiplied at a time: the products fit a core's cache."""
_LEVELS: Final = 3
"""Of hashes of hashes: enough for 2^46 words."""


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
    """Return a hash of each tensor's bits, computed where they are: a single transfer from a GPU.

    Multilinear hashing (Carter and Wegman, "Universal Classes of Hash Functions", JCSS 18, 1979): words of 32 bits
    times random numbers of 64, summed modulo 2^64. Any other words, the same in another order among them, have the
    same sum with a chance of 2^-33 at the most.
    """
    if not tensors:
        return {}
    hashes = torch.stack([_hash(_words(tensor)) for tensor in tensors.values()])
    return dict(zip(tensors, hashes.tolist(), strict=True))


def _hash(words: torch.Tensor, level: int = 0) -> torch.Tensor:
    """Hash parts of the words, and then their hashes, with other numbers, until one is left."""
    numbers = _numbers(words.device)[level]
    hashes = torch.stack([(part * numbers[: len(part)]).sum() for part in torch.split(words, _PART_WORDS)])
    return hashes[0] if len(hashes) == 1 else _hash(hashes.view(torch.int32), level + 1)


@cache
def _numbers(device: torch.device) -> torch.Tensor:
    """Return the random numbers of each level, [3, ``_PART_WORDS``]; the task's generators go on as they were."""
    shape = (_LEVELS, _PART_WORDS)
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(0)).to(device)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes as words of 32 bits, the last one filled up with zeros."""
    flat = own_part(tensor.detach()).reshape(-1).view(torch.uint8)
    if len(flat) % _WORD_BYTES or flat.storage_offset() % _WORD_BYTES:
        flat = torch.cat([flat, flat.new_zeros(-len(flat) % _WORD_BYTES)])
    return flat.view(torch.int32)
