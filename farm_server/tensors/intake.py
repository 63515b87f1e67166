"""Checks whether a result can be used, before the coordinator gets it: digest, layout, finite numbers."""

from __future__ import annotations

import math
import os
import threading
from typing import ClassVar, NamedTuple

from farm_server.tensors.layouts import Layouts, StateForms
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.tensor_reader import header_of_file
from farm_server.tensors.torch_side import TorchSide
from farm_server.tensors.unwrapping import Unwrapper
from protocol.assignments import Kind, Result
from protocol.compression import CodecSpec
from protocol.encoded import check_encoded, lacking_in, largest_bytes, without
from protocol.errors import FarmError
from protocol.inner_state import LARGEST_TREE_BYTES, without_state
from protocol.masked_layout import check_masked
from protocol.tasks import BlobRef
from protocol.tensors import Layout, read_header
from protocol.zstd import is_wrapped


class NonFiniteUpdate(FarmError):
    """The update holds NaN or infinity."""

    code: ClassVar[str] = "nonfinite_update"


class UpdateTooLarge(FarmError):
    """The update holds a number so large that the round's sum could overflow."""

    code: ClassVar[str] = "update_too_large"


class _Expected(NamedTuple):
    """What a task's updates must be like. ``states``: where they carry the inner optimizer's state."""

    layout: Layout
    codec: CodecSpec
    round_samples: int
    states: StateForms | None
    in_fragments: bool

    @property
    def largest_bytes(self) -> int:
        """The largest that one can be."""
        state_bytes = 0 if self.states is None else self.states.limit_bytes + LARGEST_TREE_BYTES
        return largest_bytes(self.layout, self.codec) + state_bytes


_LOOKING_AT_ONCE = os.cpu_count() or 1
"""Updates whose numbers are looked at: each is mapped meanwhile, and more than cores would only hold more memory."""
_NAN_ADVICE = "the training diverged; try a smaller learning rate, gradient clipping, or check the data for NaN"


class Intake:
    """Checks results. ``check`` may run on any thread."""

    def __init__(self, layouts: Layouts, spooled: SpooledUpdates, torch_side: TorchSide, unwrapper: Unwrapper) -> None:
        self._layouts = layouts
        self._spooled = spooled
        self._torch_side = torch_side
        self._unwrapper = unwrapper
        self._looking = threading.BoundedSemaphore(_LOOKING_AT_ONCE)

    def close(self) -> None:
        """Let no check wait for the disk any longer."""
        self._unwrapper.close()

    def is_quick(self, result: Result) -> bool:
        """Whether ``check`` takes well under a millisecond, so that a thread would only cost."""
        update = result.update
        if update is None:
            return True
        data = self._spooled.at_hand(update)
        return data is not None and not is_wrapped(data) and self._torch_side.is_warm

    def check(self, task_id: str, kind: Kind, result: Result) -> Result:
        """Return the result with what can be used of it.

        Its update is whole, in the task's layout and in the task's codec (a client that does not know the codec gets
        no part of the task), finite, and no longer compressed: the blob that it names may be another one than came.
        Raises: DigestMismatch, MalformedTensors, LayoutMismatch, NonFiniteUpdate or UpdateTooLarge; NotFound if the
            update was never uploaded; Unavailable if the server stops meanwhile.
        """
        if kind is not Kind.TRAIN:
            return result.model_copy(update={"metrics": _finite(result.metrics), "update": None})
        if not math.isfinite(result.metrics.get("loss", 0.0)):
            raise NonFiniteUpdate(f"the loss became {result.metrics['loss']}: {_NAN_ADVICE}")
        usable = None if result.update is None else self._usable(task_id, result.update)
        return result.model_copy(update={"metrics": _finite(result.metrics), "update": usable})

    def _usable(self, task_id: str, update: BlobRef) -> BlobRef:
        self._spooled.check(update)
        if (bits := self._layouts.masked_bits_of(task_id)) is not None:  # its numbers say nothing, to anybody
            source = self._spooled.source(update)
            header = read_header(source) if isinstance(source, bytes) else header_of_file(source)
            check_masked(self._layouts.of(task_id), header, bits)
            return update
        expected = _Expected(
            self._layouts.of(task_id),
            self._layouts.codec_of(task_id),
            self._layouts.round_samples_of(task_id),
            self._layouts.states_of(task_id),
            self._layouts.in_fragments(task_id),
        )
        source = self._spooled.source(update)
        if not self._unwrapper.is_wrapped(source):
            self._check_plain(update, expected)
            return update
        plain = self._unwrapper.plain(source, expected.largest_bytes)
        try:
            self._check_plain(plain, expected)
        except FarmError:
            self._spooled.discard(plain)
            raise
        self._spooled.unwrapped(update, plain)
        return plain

    def _check_plain(self, update: BlobRef, expected: _Expected) -> None:
        source = self._spooled.source(update)
        header = read_header(source) if isinstance(source, bytes) else header_of_file(source)
        layout, codec, states = expected.layout, expected.codec, expected.states
        if states is not None:
            states.check(header)
        lacking = lacking_in(layout, codec, header) if expected.in_fragments else frozenset[str]()
        check_encoded(layout, codec, header if states is None else without_state(header), lacking)
        layout = without(layout, lacking)
        with self._looking:
            bad = self._torch_side.bad_tensor(source, layout, codec, expected.round_samples)
            bad_state = None if states is None or bad is not None else self._torch_side.bad_state(source)
        if bad is not None and bad.finite:
            raise UpdateTooLarge(f"the update of {bad.tensor} holds a number too large to be summed: {_NAN_ADVICE}")
        if bad is not None:
            raise NonFiniteUpdate(f"the update of {bad.tensor} holds NaN or infinity: {_NAN_ADVICE}")
        if bad_state is not None:
            raise NonFiniteUpdate(f"the inner optimizer's state, {bad_state}, holds NaN or infinity: {_NAN_ADVICE}")
        if states is not None:
            states.agree(header)


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
