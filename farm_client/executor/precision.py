"""In which number format a task computes, as this machine can: autocast, and the scaling of losses for float16.

Source: Micikevicius et al., arXiv:1710.03740.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from farm_client.executor.devices import has_bfloat16, scales_losses
from farm_client.executor.means import remark
from protocol.recipe import Precision

_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True)
class Autocast:
    """Computes in ``dtype`` where torch's autocast says so; None: in the tensors' own formats."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def of(cls, precision: Precision, device: torch.device) -> Autocast:
        """Return what comes nearest to a precision on this device.

        A card without bfloat16 computes in float32 instead, with a note: never in float16, whose range is another. So
        does one on which torch can't scale losses, where float16 is asked for.
        """
        dtype = _DTYPES.get(precision)
        if dtype is torch.bfloat16 and not has_bfloat16(device):
            remark("this machine's card has no bfloat16: it computes in float32")
            dtype = None
        if dtype is torch.float16 and not scales_losses(device):
            remark("torch scales no losses on this machine's card, as float16 needs: it computes in float32")
            dtype = None
        return cls(device, dtype)

    def __call__(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def between_steps(self) -> AbstractContextManager[object]:
        """Return the context of code that steps in between: converted weights are not remembered there."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """Return what keeps small gradients from vanishing in float16; None where no scaling is needed."""
        return torch.amp.GradScaler(self.device.type) if self.dtype is torch.float16 else None
