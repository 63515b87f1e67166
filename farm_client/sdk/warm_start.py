"""Beginning with the weights of another task's checkpoint: `farm submit --from TASK@N`.

The farm holds the bytes already, so only the header of the weights file travels, to be compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from farm_client.data.sharding import blob_of
from farm_client.sdk.api import FarmApi
from farm_client.sdk.checkpoints import find_checkpoint
from farm_client.sdk.download import download_weights
from farm_client.sdk.weights_file import write_with_roles
from protocol.errors import InvalidTask
from protocol.tasks import BlobRef
from protocol.tensors import (
    HEADER_LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Layout,
    TensorSpec,
    joined_layout,
    parse_layout,
    read_header,
)

_SHOWN_DIFFERENCES: Final = 3
_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Start:
    """What a task begins with: its weights, and its frozen tensors if it has any.

    ``files`` are those that the farm may not hold, by digest.
    """

    weights: BlobRef
    frozen: BlobRef | None
    files: dict[str, Path]

    @classmethod
    def of(cls, weights: Path, frozen: Path | None) -> Start:
        """Return the start that two weights files are."""
        files = {blob_of(path): path for path in (weights, frozen) if path is not None}
        first, *rest = files
        return cls(first, rest[0] if rest else None, {blob.digest: path for blob, path in files.items()})


@dataclass(frozen=True)
class WarmStart:
    """Weights that the farm holds. ``label`` is what to call them, such as ``abcd2345@20``."""

    label: str
    parts: Mapping[BlobRef, Layout]
    """The weights file, and that of the frozen tensors where there is one."""
    fetch: Callable[[BlobRef, Path], None]
    """Writes one of them to a path."""

    def fitted_to(self, built: Start, folder: Path) -> Start:
        """Return the start of a model whose own weights are ``built``; its files are made in ``folder`` if need be.

        The farm has them, unless other layers are frozen now: then the same tensors are parted as the model's are.
        Raises: InvalidTask naming the tensors that are not those of the model.
        """
        model, kept = _layouts_of(built), list(self.parts.values())
        if differing := _differences(_whole(model), _whole(kept)):
            raise InvalidTask(
                f"the weights of {self.label} do not fit what build_model builds: {differing}. "
                "Build the same model, or submit without --from"
            )
        if model == kept:
            weights, *frozen = self.parts
            return Start(weights, frozen[0] if frozen else None, {})
        fetched = [folder / f"warm-start.{number}.weights" for number in range(len(kept))]
        for blob, path in zip(self.parts, fetched, strict=True):
            self.fetch(blob, path)
        fitted = [folder / f"fitted.{number}.weights" for number in range(len(model))]
        for layout, path in zip(model, fitted, strict=True):
            write_with_roles(fetched, path, layout)
        return Start.of(fitted[0], fitted[1] if len(fitted) > 1 else None)

    def differs_from(self, built: Start) -> str | None:
        """Return which tensors of a model are others than these, or frozen where these are not; None if none is."""
        model, kept = _layouts_of(built), list(self.parts.values())
        if differing := _differences(_whole(model), _whole(kept)):
            return differing
        return None if model == kept else "other tensors are frozen in it"


def find_warm_start(api: FarmApi, task_id: str, round_number: int | None = None) -> WarmStart:
    """Look a checkpoint's weights up; ``api`` must stay open. Raises: NotFound saying which rounds are kept."""
    checkpoint = find_checkpoint(api, task_id, round_number)
    blobs = [BlobRef(digest=checkpoint.digest, size_bytes=checkpoint.size_bytes)]
    blobs += [checkpoint.frozen] if checkpoint.frozen is not None else []
    parts: dict[BlobRef, Layout] = {}
    for blob in blobs:
        with api.get_blob(blob.digest) as chunks:
            parts[blob] = parse_layout(read_header(_leading_bytes(chunks), blob.size_bytes))
    return WarmStart(f"{task_id}@{checkpoint.round}", parts, partial(download_weights, api))


def _whole(parts: Sequence[Layout]) -> Layout:
    """Return the layout of a model in one or two files."""
    return parts[0] if len(parts) == 1 else joined_layout(*parts)


def _layouts_of(built: Start) -> list[Layout]:
    """Return the layouts of a model's one or two weights files."""
    return [_layout_of(path) for path in built.files.values()]


def _layout_of(weights: Path) -> Layout:
    """Return the layout of a weights file without reading its tensors."""
    with weights.open("rb") as file:
        chunks = iter(lambda: file.read(_READ_BYTES), b"")
        return parse_layout(read_header(_leading_bytes(chunks), weights.stat().st_size))


def _leading_bytes(chunks: Iterable[bytes]) -> bytes:
    """Return a tensor file's bytes up to the end of its header at least; the rest is not read."""
    data = b""
    for chunk in chunks:
        data += chunk
        header_bytes = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
        if len(data) >= HEADER_LENGTH_BYTES + min(header_bytes, MAX_HEADER_BYTES):
            break
    return data


def _differences(model: Layout, start: Layout) -> str:
    """Return the first tensors that are not the same in model and checkpoint; empty if all are."""
    differing = list(_each_difference(model, start))
    more = len(differing) - _SHOWN_DIFFERENCES
    return "; ".join(differing[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _each_difference(model: Layout, start: Layout) -> Iterator[str]:
    built, kept = ({spec.name: spec for spec in layout.tensors} for layout in (model, start))
    for name in sorted(built.keys() | kept.keys()):
        if name not in kept:
            yield f"{name} is only in the model"
        elif name not in built:
            yield f"{name} is only in the checkpoint"
        elif _shape(built[name]) != _shape(kept[name]):
            yield f"{name} is {_shape(built[name])} in the model and {_shape(kept[name])} in the checkpoint"
    for name, _ in sorted(model.tied.items() ^ start.tied.items()):
        yield f"{name} shares another tensor only in the {'model' if name in model.tied else 'checkpoint'}"


def _shape(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
