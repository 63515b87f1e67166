"""The version that follows from one update alone: what the farm will make, known to the client before it comes.

Where a client does all of a round, plain averaging makes base minus update of it. Who has computed that already needs
neither download nor copy it to the card, and the digest tells whether it is the farm's version to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from farm_client.executor.layout import TensorMap, as_stored
from protocol.digests import new_hasher
from protocol.tensors import HEADER_LENGTH_BYTES, read_header


@dataclass(frozen=True)
class FileForm:
    """How a task's weights files begin, and the order of the tensors in them: the same in all of its versions."""

    lead: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> FileForm:
        """Read it from a weights file. Raises: MalformedTensors; OSError."""
        with path.open("rb") as file:
            length = file.read(HEADER_LENGTH_BYTES)
            lead = length + file.read(int.from_bytes(length, "little"))
        tensors = read_header(lead, path.stat().st_size).tensors
        return cls(lead, tuple(sorted(tensors, key=lambda name: (tensors[name].start, tensors[name].stop))))

    def digest(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Return the digest that the tensors' weights file would have."""
        stored = as_stored({name: tensors[name] for name in self.names})
        hasher = new_hasher().update(self.lead)
        for name in self.names:
            hasher.update(stored[name].reshape(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()


def foresee(base: TensorMap, update: TensorMap, buffers: Collection[str], samples: int) -> TensorMap:
    """Return the version that the update of so many samples makes of ``base``, with nobody else's and plain averaging.

    Each float32 parameter goes through the farm's operations in their order: times its weight, divided by it,
    subtracted. Not by a number but by a tensor, because a card divides by numbers as if it multiplied by their inverse.
    Buffers are the update's.
    """
    tensors: TensorMap = {}
    with torch.no_grad():
        for name, tensor in base.items():
            change = update.get(name)
            if change is None or name in buffers:
                tensors[name] = tensor if change is None else change
                continue
            weight = torch.tensor(float(samples), dtype=tensor.dtype, device=tensor.device)
            tensors[name] = tensor - change.detach() * weight / weight
    return tensors
