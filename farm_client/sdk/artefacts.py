"""A task's artefacts on this machine: `farm artefacts TASK --pull DIR` writes ``DIR/EPOCH/NAME``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import download_weights, make_ordinary
from farm_client.sdk.errors import BadOutput
from protocol.artefacts import ArtefactList, ArtefactView
from protocol.digests import digest_bytes
from protocol.errors import NotFound
from protocol.tasks import BlobRef


def list_artefacts(api: FarmApi, task_id: str, epoch: int | None = None) -> ArtefactList:
    """Return a task's artefacts, of one epoch (from 0) or of all. Raises: NotFound, also from an older farm."""
    found = api.artefacts(task_id)
    if epoch is None:
        return found
    return found.model_copy(update={"artefacts": tuple(one for one in found.artefacts if one.epoch == epoch)})


def pull_artefacts(
    api: FarmApi, artefacts: Sequence[ArtefactView], folder: Path, advance: Callable[[int], None] = lambda _: None
) -> list[Path]:
    """Write artefacts to ``folder/EPOCH/NAME`` and return the paths; each file appears whole or not at all.

    What is there already is left alone: the same command brings what has come since.
    Raises: BadOutput where a file of the same name has other bytes, or no folder can be; DigestMismatch; NotFound.
    """
    return [_pull(api, one, folder / str(one.epoch) / one.name, folder, advance) for one in artefacts]


def why_none(found: ArtefactList, epoch: int | None = None) -> NotFound:
    """Return the error that says why there is nothing to pull, of one epoch or of any."""
    if found.error is not None:
        return NotFound(f"task {found.task_id} has no artefacts: {found.error}")
    if epoch is not None:
        return NotFound(f"task {found.task_id} has no artefacts of epoch {epoch}; without --epoch all are listed")
    return NotFound(f"task {found.task_id} has no artefacts: no on_epoch_end of it has left a file yet")


def _pull(api: FarmApi, one: ArtefactView, path: Path, folder: Path, advance: Callable[[int], None]) -> Path:
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise BadOutput(f"{path.parent} is a link to elsewhere: remove it, or name another folder")
    if path.is_symlink() or path.exists():
        is_same = path.is_file() and path.stat().st_size == one.size_bytes and _digest(path) == one.digest
        if not is_same:
            raise BadOutput(f"{path} is there and is another file: name another folder")
        advance(one.size_bytes)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutput(f"{path.parent} can't be made: {error.strerror}") from error
    partial = path.with_name(f".{one.digest[:16]}.part")
    download_weights(api, BlobRef(digest=one.digest, size_bytes=one.size_bytes), partial, advance)
    make_ordinary(partial)
    partial.replace(path)
    return path


def _digest(path: Path) -> str:
    return digest_bytes(path.read_bytes())
