"""Pulling a model: the checkpoint's bytes, checked against their digest, become a file in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from farm_client.sdk.api import FarmApi
from farm_client.sdk.weights_file import write_model_file
from protocol.digests import new_hasher
from protocol.errors import DigestMismatch
from protocol.rest import ModelView


def pull_model(api: FarmApi, model: ModelView, output: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write the model to ``output``, ready for ``model.load_state_dict(load_file(output))``.

    The file appears whole or not at all. ``advance`` is told how many more bytes arrived.
    Raises: DigestMismatch if the bytes were damaged on the way; NotFound if the farm dropped the checkpoint.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    notes = {"task": model.task_id, "round": str(model.round), "weights_digest": model.digest}
    with _replacing(output) as partial, _vanishing(output) as weights:
        download_weights(api, model.digest, weights, advance)
        write_model_file(weights, partial, notes)


def download_weights(api: FarmApi, digest: str, to: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a checkpoint's weights file to ``to``. Raises: DigestMismatch, NotFound."""
    hasher = new_hasher()
    with api.get_blob(digest) as chunks, to.open("wb") as file:
        for chunk in chunks:
            hasher.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    if hasher.hexdigest() != digest:
        raise DigestMismatch(f"the model arrived damaged (wanted {digest[:12]}…): try again")


@contextmanager
def _vanishing(beside: Path) -> Iterator[Path]:
    """Give an empty file in the same folder that is gone at the end of the block."""
    handle, name = tempfile.mkstemp(dir=beside.parent, prefix=f".{beside.name}.", suffix=".partial")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Give a file that takes the place of ``output`` at the end of the block, or vanishes on an error."""
    with _vanishing(output) as partial:
        yield partial
        # mkstemp makes files that only their owner can read; a model is an ordinary file.
        partial.chmod(0o666 & ~_umask())
        partial.replace(output)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
