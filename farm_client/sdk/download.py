"""Pulling a model: the checkpoint's bytes, checked against their digest, become a file in one step.

A download that was cut, by Ctrl-C too, goes on when the same model is pulled to the same place again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from farm_client.sdk.api import FarmApi
from farm_client.sdk.blocking_transfers import Forward, carry
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.weights_file import Renamed, write_model_file
from farm_client.transfer.download import download
from farm_client.transfer.partial_file import PartialFile
from protocol.rest import ModelView
from protocol.tasks import BlobRef


def pull_model(
    api: FarmApi,
    model: ModelView,
    output: Path,
    advance: Callable[[int], None] = lambda _: None,
    renamed: Renamed = str,
) -> None:
    """Write the model to ``output``, ready for ``model.load_state_dict(load_file(output))``.

    The file appears whole or not at all. ``advance`` is told how many more bytes arrived. Whatever ends a download,
    what came of it is kept in a hidden file beside ``output``. ``renamed`` gives a tensor its name in the file.
    Raises: DigestMismatch if the farm's copy is damaged; NotFound if it dropped the checkpoint; Conflict if another
        process is pulling the same model to the same place.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    notes = {"task": model.task_id, "round": str(model.round), "weights_digest": model.digest}
    blobs = [BlobRef(digest=model.digest, size_bytes=model.size_bytes), *([model.frozen] if model.frozen else [])]
    weights = [output.with_name(f".{output.name}.{blob.digest[:16]}.part") for blob in blobs]
    for blob, file in zip(blobs, weights, strict=True):
        download_weights(api, blob, file, advance)
    try:
        with _replacing(output) as partial:
            write_model_file(weights, partial, notes, renamed)
    finally:
        for file in weights:
            file.unlink()


def pull_torch(api: FarmApi, model: ModelView, output: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write the model to ``output`` as ``torch.save`` does, for ``torch.load(output, weights_only=True)``.

    Raises: as ``pull_model``.
    """
    check_output(output)
    plain = output.with_name(f".{output.name}.safetensors")
    pull_model(api, model, plain, advance)
    try:
        import torch  # noqa: PLC0415 - it takes a second, and few commands need it
        from safetensors.torch import load_file  # noqa: PLC0415

        with _replacing(output) as partial:
            torch.save(load_file(plain), partial)
    finally:
        plain.unlink()


def check_output(output: Path) -> None:
    """See that a model may take this place. Raises: BadOutput where a folder, a device or a pipe is."""
    if output.exists() and not output.is_file():
        raise BadOutput(f"{output} is a folder, a device or a pipe: give the model a file's name with -o")


def download_weights(api: FarmApi, blob: BlobRef, to: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a checkpoint's weights file to ``to``, from where an earlier call was cut.

    Raises: DigestMismatch, NotFound, Conflict.
    """
    forward = Forward(advance)
    carry(api, lambda carrier: download(carrier, blob.digest, PartialFile(to, blob.size_bytes), forward))


def make_ordinary(path: Path) -> None:
    """Let who may read other new files read this one: unfinished ones are made for their owner alone."""
    path.chmod(0o666 & ~_umask())


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Give a file that takes the place of ``output`` at the end of the block, or vanishes on an error."""
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        make_ordinary(partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
