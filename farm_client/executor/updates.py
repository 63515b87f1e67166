"""A task's updates on their way out: small by its codec, and what one of them loses goes into the next."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.inner_state import SavedState
from farm_client.executor.layout import TensorMap, as_stored
from farm_client.executor.messages import LoadTask
from protocol.codecs import encode, tensor_file
from protocol.compression import CodecName
from protocol.digests import digest_bytes, new_hasher
from protocol.encoded import stored_tensors, untouched_metadata, without
from protocol.errors import LayoutMismatch, NotFinite
from protocol.inner_state import is_of_state
from protocol.tensors import Layout
from protocol.zstd import wrap, wrap_bytes

_BLOCK_BYTES: Final = 1024 * 1024


class UpdateWriter:
    """Encodes the updates of a loaded task, and keeps what they lost: a float32 number for each one of the model's.

    What an update lost counts from the moment that it was reported (``confirm``). Until then the former state stays,
    so that an assignment that fails, or is begun again, neither repeats what was carried over nor forgets it.
    """

    def __init__(self, order: LoadTask, layout: Layout) -> None:
        """Raises: CodeError if a tensor of the model has a name that the codec needs."""
        try:
            stored = stored_tensors(layout, order.update_codec)
        except LayoutMismatch as error:
            raise CodeError(error.message) from error
        if taken := next((name for name in stored if is_of_state(name)), None):
            raise CodeError(f"the tensor name {taken!r} is one of those for the inner optimizer's state: rename it")
        self._codec = order.update_codec
        self._layout = layout
        self._scratch_dir = Path(order.scratch_dir)
        self._report_bytes = order.report_bytes
        is_lossy = self._codec.name is not CodecName.NONE
        self._feeds_back = is_lossy and self._codec.error_feedback
        self._wraps = is_lossy and self._codec.zstd
        self._residual: TensorMap = {}
        self._unconfirmed: TensorMap | None = None

    def begin(self) -> None:
        """Start another assignment: an update that was not reported by now never will be."""
        self._unconfirmed = None

    def write(
        self,
        assignment_id: str,
        update: TensorMap,
        untouched: Collection[str] = frozenset(),
        state: SavedState | None = None,
    ) -> dict[str, object]:
        """Return an update as fields of ``Done``: bytes, or a file in the scratch folder.

        The file names the ``untouched`` parameters, but for those that earlier updates left something of, and has
        nothing of those that ``update`` lacks. A ``state`` of the inner optimizer goes along as it is: no codec loses
        anything of it.

        Raises: LossNotFinite if its numbers are too large for the codec; OSError.
        """
        self.begin()
        residual = dict(self._residual) if self._feeds_back else None
        nothing_left = [name for name in untouched if name not in self._residual or not self._residual[name].any()]
        lacking = [spec.name for spec in self._layout.parameters if spec.name not in update]
        try:
            stored, metadata = encode(as_stored(update), without(self._layout, lacking), self._codec, residual)
        except NotFinite as error:
            raise LossNotFinite(f"{error.message}: lower the learning rate or clip gradients") from error
        metadata |= untouched_metadata({*nothing_left, *lacking})
        if state is not None:
            stored, metadata = stored | state.tensors, metadata | state.metadata
        fields = self._saved(assignment_id, stored, metadata)
        self._unconfirmed = residual
        return fields

    def write_kept(self, assignment_id: str, kept: TensorMap | None) -> dict[str, object]:
        """Return what the client keeps for its next round as fields of ``Done``: a file in the scratch folder."""
        if kept is None:
            return {}
        path = self._scratch_dir / f"{assignment_id}.control"
        _write(path, tensor_file(as_stored(kept), {}))
        return {"control_path": str(path)}

    @property
    def residual(self) -> TensorMap:
        """What reported updates lost, by parameter: where an executor takes another's place, it goes on with that."""
        return self._residual

    def confirm(self) -> None:
        """Note that the assignment was reported, with its update if it has one."""
        if self._unconfirmed is not None:
            self._residual, self._unconfirmed = self._unconfirmed, None

    def _saved(self, assignment_id: str, stored: TensorMap, metadata: dict[str, str]) -> dict[str, object]:
        chunks = tensor_file(stored, metadata)
        if sum(map(len, chunks)) - len(chunks[0]) <= self._report_bytes:
            data = b"".join(chunks)
            data = wrap_bytes(data) if self._wraps else data
            if len(data) <= self._report_bytes:
                return {"update": data, "update_digest": digest_bytes(data), "update_bytes": len(data)}
        path = self._scratch_dir / f"{assignment_id}.update"
        digest = _write(path, chunks)
        if self._wraps and _wrap_file(path):
            digest = new_hasher().update_mmap(path).hexdigest()
        return {"update_path": str(path), "update_digest": digest, "update_bytes": path.stat().st_size}


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write a file and return its digest; a thread hashes each block while it and the next ones are written."""
    hasher = new_hasher()
    with path.open("wb") as file, ThreadPoolExecutor(1, thread_name_prefix="update-hash") as hashing:
        for chunk in chunks:
            for start in range(0, len(chunk), _BLOCK_BYTES):
                block = memoryview(chunk)[start : start + _BLOCK_BYTES]
                hashing.submit(hasher.update, block)
                file.write(block)
    return hasher.hexdigest()


def _wrap_file(path: Path) -> bool:
    """Put the file into a zstd frame, if that is worthwhile; return whether it was."""
    wrapped = path.with_suffix(".zstd")
    try:
        with path.open("rb") as source, wrapped.open("wb") as target:
            is_worthwhile = wrap(source, target)
        if is_worthwhile:
            wrapped.replace(path)
        return is_worthwhile
    finally:
        wrapped.unlink(missing_ok=True)
