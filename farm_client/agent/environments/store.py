"""The environments of a home: each in a folder by its digest, complete or not there at all, up to a size.

<root>/<digest>/packages/          what goes on an executor's path
<root>/<digest>/environment.json   what it is, and how large; its time is that of the last use
<root>/building-XXXX/              one that is being built; of a killed agent it is removed at the next start
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from protocol.digests import is_digest
from protocol.environments import MAX_ENVIRONMENTS
from protocol.frozen import Frozen

_ABOUT: Final = "environment.json"
_PACKAGES: Final = "packages"
_UNFINISHED: Final = ("building-", "removing-")


class BuiltEnvironment(Frozen):
    """An environment that is there. Times are Unix seconds."""

    digest: str
    packages: tuple[str, ...] = ()
    """As ``name==version``."""
    size_bytes: int = 0
    files: int = 0
    built_at: float = 0.0
    used_at: float = 0.0


def _nobody() -> Collection[str]:
    return ()


class EnvironmentStore:
    """Environments on disk. Only the agent that holds the home may change them."""

    def __init__(self, root: Path, max_bytes: int, in_use: Callable[[], Collection[str]] = _nobody) -> None:
        """``in_use``: the digests whose files executors have on their path; they are never removed."""
        self.root = root
        self.max_bytes = max_bytes
        self._in_use = in_use

    def clear_up(self) -> None:
        """Remove what a killed agent left, and what is not as it was built: a disk may lose what was written last."""
        if not self.root.is_dir():
            return
        for folder in list(self.root.iterdir()):
            if folder.name.startswith(_UNFINISHED):
                shutil.rmtree(folder, ignore_errors=True)
            elif is_digest(folder.name):
                about = _read(folder)
                if about is None or measure(folder / _PACKAGES) != (about.size_bytes, about.files):
                    self.remove(folder.name)

    def list(self) -> list[BuiltEnvironment]:
        """Return what is there, the last used first."""
        try:
            folders = [entry for entry in self.root.iterdir() if is_digest(entry.name)]
        except OSError:
            return []
        known = [about for folder in folders if (about := _read(folder)) is not None]
        return sorted(known, key=lambda about: (-about.used_at, about.digest))

    def digests(self) -> tuple[str, ...]:
        """Return the digests of what is there, the last used first, as many as a client names."""
        return tuple(about.digest for about in self.list()[:MAX_ENVIRONMENTS])

    def packages(self, digest: str) -> Path | None:
        """Return the folder for an executor's path, and note the use; None if there is no such environment."""
        folder = self.root / digest
        if not is_digest(digest) or _read(folder) is None:
            return None
        with suppress(OSError):  # a read-only disk: it is used all the same
            os.utime(folder / _ABOUT)
        return folder / _PACKAGES

    def begin(self) -> Path:
        """Make a folder to build in. Raises: OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED[0], dir=self.root))
        (folder / _PACKAGES).mkdir()
        return folder

    def finish(self, folder: Path, digest: str, packages: Iterable[str]) -> BuiltEnvironment:
        """Let what was built count, and evict others for it. Raises: OSError.

        Nothing else than its packages stays of the folder.
        """
        for entry in folder.iterdir():
            if entry.name != _PACKAGES:
                _delete(entry)
        size_bytes, files = measure(folder / _PACKAGES)
        now = time.time()
        about = BuiltEnvironment(
            digest=digest, packages=tuple(packages), size_bytes=size_bytes, files=files, built_at=now, used_at=now
        )
        (folder / _ABOUT).write_text(about.model_dump_json(), encoding="utf-8")
        self.remove(digest)
        folder.rename(self.root / digest)
        self.evict(but=digest)
        return about

    def evict(self, but: str = "") -> None:
        """Remove the least recently used until the rest fits; what is in use stays, and ``but``."""
        kept = self.list()
        total_bytes = sum(about.size_bytes for about in kept)
        in_use = {but, *self._in_use()}
        for about in reversed(kept):
            if total_bytes > self.max_bytes and about.digest not in in_use:
                self.remove(about.digest)
                total_bytes -= about.size_bytes

    def remove(self, digest: str) -> None:
        """Remove one, which is gone at once for whoever looks for it."""
        folder = self.root / digest
        with suppress(OSError):
            gone = Path(tempfile.mkdtemp(prefix=_UNFINISHED[1], dir=self.root))
            folder.rename(gone / digest) if folder.exists() else None
            shutil.rmtree(gone, ignore_errors=True)

    @staticmethod
    def give_up(folder: Path) -> None:
        """Remove what was not built to its end."""
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> tuple[int, int]:
    """Return how many bytes the files in a folder have, and how many they are; what vanishes meanwhile counts not."""
    size_bytes = files = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size_bytes += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118  for each of thousands
                files += 1
    return size_bytes, files


def _read(folder: Path) -> BuiltEnvironment | None:
    try:
        about = BuiltEnvironment.model_validate_json((folder / _ABOUT).read_bytes())
        used_at = (folder / _ABOUT).stat().st_mtime
    except (OSError, ValidationError):
        return None
    return about.model_copy(update={"used_at": used_at}) if about.digest == folder.name else None


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink()
