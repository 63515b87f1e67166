"""What of a tensor is in this process's memory, where several processes hold a model together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Parted(Protocol):
    """How a model's processes hold it together."""

    def begin(self) -> None:
        """Begin an assignment: each process holds its own parts alone."""

    def within(self, call: Callable[[], tuple[torch.Tensor | None, Any]]) -> Any:
        """Return the second of what a call returns that computes with the model; the first is the loss, if any."""

    def own(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a whole tensor, which is parted as the parameter is."""

    def gathered(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take tensors out of a dictionary, one by one; return them whole on rank 0, and nothing on others."""


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: all, but of a DTensor.

    Without torch's module for those: to import it takes a quarter of a second, and few executors need it.
    """
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
