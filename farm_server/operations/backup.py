"""A consistent copy of a data folder, made while its server runs, and loaded into a new folder.

    DIR/backup.json       what the copy holds: the ledger's and each blob's name, size and digest; written last
    DIR/farm.db           the ledger as of one moment
    DIR/blobs/ab/ab12...  every blob that this ledger refers to, hard-linked where the disk is the same one

Tokens travel with it, so that volunteers find the restored farm by the addresses they know.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from farm_server.environment.data_folder import DataFolder
from farm_server.environment.settings import ServerSettings
from farm_server.environment.signing_key import KEY_FILE
from protocol.errors import Conflict, DigestMismatch, NotFound, Unavailable
from protocol.frozen import Frozen
from storage.engine import ledger_path
from storage.errors import disk_errors
from storage.file_digest import digest_of_file
from storage.inspection import referenced_by
from storage.ledger_file import copy_ledger

_MANIFEST: Final = "backup.json"
_LEDGER: Final = "farm.db"
_SECRETS: Final = ("join.token", "farm.token", KEY_FILE)
_BLOCK_BYTES: Final = 1024 * 1024
_TRIES: Final = 5


class Copied(Frozen):
    """One file of a backup, by its name below the folder."""

    name: str = Field(pattern=r"^(farm\.db|join\.token|farm\.token|certificate\.key|blobs/[0-9a-f]{2}/[0-9a-f]{64})$")
    size_bytes: int
    digest: str

    @property
    def is_intact(self) -> bool:
        """Whether a blob's bytes hash to its name."""
        return not self.name.startswith("blobs/") or self.name.endswith(self.digest)


class BackupManifest(Frozen):
    """``backup.json``: a folder without it is no backup, for it was not finished."""

    format: Literal["aifarm-backup-1"] = "aifarm-backup-1"
    files: tuple[Copied, ...] = Field(min_length=1)
    missing: tuple[str, ...] = ()
    """Blobs that the ledger refers to and that were lost or damaged before the backup."""

    @property
    def size_bytes(self) -> int:
        """Add up the files."""
        return sum(file.size_bytes for file in self.files)


def back_up(settings: ServerSettings, target: Path) -> BackupManifest:
    """Copy the data folder into ``target``; it may be in use meanwhile. Durable on return.

    Raises: Conflict if the target is not empty; NotFound without a ledger; Unavailable if a disk refuses.
    """
    ledger = ledger_path(settings.ledger_url)
    if not ledger.exists():
        raise NotFound(f"there is no ledger {ledger} to back up; give the server's folder by --data-dir")
    _make_empty(target)
    with _whole_or_nothing(target):
        digests, missing = _copy_facts(ledger, settings.data_dir / "blobs", target)
        secrets = [name for name in _SECRETS if (settings.data_dir / name).exists()]
        for name in secrets:
            _copy_file(settings.data_dir / name, target / name)
        held = [*secrets, _LEDGER, *(f"blobs/{d[:2]}/{d}" for d in sorted(digests - set(missing)))]
        files = [_described(target, name) for name in held]
        missing += [Path(file.name).name for file in files if not file.is_intact]
        _drop_others(target / "blobs", digests - set(missing))
        manifest = BackupManifest(files=tuple(file for file in files if file.is_intact), missing=tuple(missing))
        _write_durably(target / _MANIFEST, manifest.model_dump_json(indent=1).encode())
        _sync_folders(target)
    return manifest


def restore(source: Path, data_dir: Path) -> BackupManifest:
    """Check every file of a backup against its digest, then load it into a new data folder. Durable on return.

    Raises: NotFound if ``source`` holds no finished backup; DigestMismatch naming a damaged file; Conflict if
        ``data_dir`` is not empty; Unavailable if a disk refuses.
    """
    manifest = _read_manifest(source)
    for file in manifest.files:
        if not (source / file.name).is_file() or _described(source, file.name) != file:
            raise DigestMismatch(
                f"{source / file.name} is missing or damaged; nothing was restored, take another backup"
            )
    _make_empty(data_dir)
    folder = DataFolder(data_dir)
    with _whole_or_nothing(data_dir):
        for file in manifest.files:
            _copy_file(source / file.name, folder.root / file.name)
        _sync_folders(folder.root)
    return manifest


def _read_manifest(source: Path) -> BackupManifest:
    try:
        return BackupManifest.model_validate_json((source / _MANIFEST).read_bytes())
    except OSError as error:
        raise NotFound(f"{source} holds no finished backup: {_MANIFEST}: {error.strerror}") from error
    except ValidationError as error:
        raise NotFound(f"{source / _MANIFEST} can't be read as a backup's manifest; take another backup") from error


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Conflict(f"{folder} is not empty; give a folder that is, or does not exist yet")
    except OSError as error:
        raise Unavailable(f"{folder} can't be used: {error.strerror or error}; give another folder") from error


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Leave nothing in a folder that could not be filled, so that the next try finds it empty."""
    try:
        with disk_errors(folder):
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy_facts(ledger: Path, blobs: Path, target: Path) -> tuple[frozenset[str], list[str]]:
    """Copy the ledger, then what it refers to; return those digests, and which of them are missing.

    A blob that was dropped between the two is not missed by a newer ledger: then the ledger is copied again.
    """
    for _ in range(_TRIES):
        copy_ledger(ledger, target / _LEDGER)
        digests = referenced_by(target / _LEDGER)
        missing = _copy_blobs(blobs, target / "blobs", digests)
        if not missing:
            break
    return digests, missing


def _copy_blobs(source: Path, target: Path, digests: Iterable[str]) -> list[str]:
    """Copy what is not there yet; return what is not in the source either."""
    missing = []
    for digest in digests:
        copy = target / digest[:2] / digest
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / digest[:2] / digest, copy)
        except FileNotFoundError:
            missing.append(digest)
        except OSError:  # another disk, or one without links
            try:
                _copy_file(source / digest[:2] / digest, copy)
            except FileNotFoundError:
                missing.append(digest)
    return missing


def _drop_others(blobs: Path, digests: frozenset[str]) -> None:
    for path in blobs.glob("*/*"):
        if path.name not in digests:
            path.unlink()


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new, _BLOCK_BYTES)
        new.flush()
        os.fsync(new.fileno())
    shutil.copymode(source, target)


def _described(root: Path, name: str) -> Copied:
    path = root / name
    return Copied(name=name, size_bytes=path.stat().st_size, digest=digest_of_file(path))


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folders(root: Path) -> None:
    """Make the names in a folder and in all below it durable."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
