"""Beginning with the weights of another task's checkpoint: `farm submit --from TASK@N`.

The farm holds the bytes already, so only the header of the weights file travels, to be compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from protocol.tensors import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES, Layout, TensorSpec, parse_layout, read_header

_SHOWN_DIFFERENCES: Final = 3
_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class WarmStart:
    """Weights that the farm holds. ``label`` is what to call them, such as ``abcd2345@20``."""

    label: str
    blob: BlobRef
    layout: Layout
    fetch: Callable[[Path], None]
    """Writes the whole weights file to a path."""

    def fitted_to(self, model_weights: Path, folder: Path) -> tuple[BlobRef, Path | None]:
        """Return the weights to begin with, and their file if the farm does not hold them in this form.

        It does, unless other layers are frozen now: then the same tensors get the model's roles, in ``folder``.
        Raises: InvalidTask naming the tensors that are not those of the model whose weights file this is.
        """
        model = _layout_of(model_weights)
        if differing := list(_differences(model, self.layout)):
            raise InvalidTask(
                f"the weights of {self.label} do not fit what build_model builds: {_first(differing)}. "
                "Build the same model, or submit without --from"
            )
        if model == self.layout:
            return self.blob, None
        fetched, fitted = folder / "warm-start.weights", folder / "fitted.weights"
        self.fetch(fetched)
        write_with_roles(fetched, fitted, model)
        return blob_of(fitted), fitted


def find_warm_start(api: FarmApi, task_id: str, round_number: int | None = None) -> WarmStart:
    """Look a checkpoint's weights up; ``api`` must stay open. Raises: NotFound saying which rounds are kept."""
    checkpoint = find_checkpoint(api, task_id, round_number)
    with api.get_blob(checkpoint.digest) as chunks:
        header = read_header(_leading_bytes(chunks), checkpoint.size_bytes)
    blob = BlobRef(digest=checkpoint.digest, size_bytes=checkpoint.size_bytes)
    fetch = partial(download_weights, api, blob)
    return WarmStart(f"{task_id}@{checkpoint.round}", blob, parse_layout(header), fetch)


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


def _differences(model: Layout, start: Layout) -> Iterator[str]:
    """Say what of the checkpoint differs from the model, tensor by tensor."""
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


def _first(differing: Sequence[str]) -> str:
    more = len(differing) - _SHOWN_DIFFERENCES
    return "; ".join(differing[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
