"""Decides whether a result can be used, before the coordinator hears of it: digest, layout, finite numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from farm_server.layouts import Layouts
from farm_server.tensor_reader import header_of_file
from farm_server.torch_side import TorchSide
from protocol.compression import CodecSpec
from protocol.digests import digest_bytes
from protocol.encoded import check_encoded
from protocol.errors import DigestMismatch, FarmError
from protocol.messages import Kind, Result
from protocol.tasks import BlobRef
from protocol.tensors import read_header
from storage.blobs import FolderBlobStore


class NonFiniteUpdate(FarmError):
    """The update holds NaN or infinity."""

    code: ClassVar[str] = "nonfinite_update"


_NAN_ADVICE = "the training diverged; try a smaller learning rate, gradient clipping, or check the data for NaN"


class Intake:
    """Checks results. ``check`` may run on any thread."""

    def __init__(self, layouts: Layouts, blobs: FolderBlobStore, torch_side: TorchSide) -> None:
        self._layouts = layouts
        self._blobs = blobs
        self._torch_side = torch_side

    def is_quick(self, result: Result) -> bool:
        """Whether ``check`` takes well under a millisecond, so that a thread would only cost."""
        return result.update is None or (result.update.inline is not None and self._torch_side.is_warm)

    def check(self, task_id: str, kind: Kind, result: Result) -> Result:
        """Return the result with what can be used of it; its update is whole, in the task's layout, and finite.

        Raises: DigestMismatch, MalformedTensors, LayoutMismatch or NonFiniteUpdate; NotFound if the update was
            never uploaded.
        """
        if kind is Kind.EVALUATE:
            return result.model_copy(update={"metrics": _finite(result.metrics), "update": None})
        if not math.isfinite(result.metrics.get("loss", 0.0)):
            raise NonFiniteUpdate(f"the loss became {result.metrics['loss']}: {_NAN_ADVICE}")
        if result.update is not None:
            self._check_update(task_id, result.update)
        return result.model_copy(update={"metrics": _finite(result.metrics)})

    def _check_update(self, task_id: str, update: BlobRef) -> None:
        if update.inline is not None:
            _check_bytes(update, update.inline)
            header = read_header(update.inline)
            source: bytes | Path = update.inline
        else:
            source = self._blobs.path(update.digest)
            header = header_of_file(source)
        layout = self._layouts.of(task_id)
        check_encoded(layout, CodecSpec(), header)
        if (name := self._torch_side.non_finite_tensor(source, layout, CodecSpec())) is not None:
            raise NonFiniteUpdate(f"the update of {name} holds NaN or infinity: {_NAN_ADVICE}")


def _check_bytes(update: BlobRef, data: bytes) -> None:
    if len(data) != update.size_bytes or digest_bytes(data) != update.digest:
        raise DigestMismatch(f"the inline update of {len(data)} bytes is not {update.digest[:12]}…; send it again")


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
