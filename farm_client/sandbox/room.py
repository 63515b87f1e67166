"""The folders of one executor: what the agent gives it to read, what it may write, and how that is taken back.

    <root>/given/      the agent links files of its cache here; the executor reads them
    <root>/scratch/    the executor's own: it may write here, and nowhere else
    <root>/taken/      the agent's: what it took out of the scratch folder, where the executor can't reach it

The executor runs strangers' code, so nothing that it leaves is trusted: not the name it says, nor what lies there. A
file is taken by its folders' descriptors, and no link is followed: one that leads to the volunteer's own files would
carry them to the farm.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Final, Self

_NOT_LINKABLE: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES})
"""Another file system, one without hard links, or a file of somebody else's."""


HOLD: Final = "held"
"""A file in a room, locked by whoever outside of the executor still ends something there."""
_HELD_SECONDS: Final = 5.0
_HELD_TURN_SECONDS: Final = 0.01


class Room:
    """One executor's folders. Not thread-safe: the agent's event loop uses it."""

    def __init__(self, root: Path) -> None:
        """``root`` is an existing folder that only the agent's user can enter."""
        self.root = root
        self._taken = count()
        self._lent: tuple[frozenset[str], ...] = ()

    @classmethod
    def make(cls, parent: Path) -> Self:
        """Make a new room in a folder. Raises: OSError."""
        room = cls(Path(tempfile.mkdtemp(prefix="executor-", dir=parent)))
        for folder in (room.given, room.scratch, room.root / "taken"):
            folder.mkdir(mode=0o700)
        return room

    @property
    def given(self) -> Path:
        """The folder that the executor may read."""
        return self.root / "given"

    @property
    def scratch(self) -> Path:
        """The folder that the executor may write to, and the only one."""
        return self.root / "scratch"

    def give(self, file: Path, name: str | None = None) -> Path:
        """Let the executor read a file, and return where it finds it: under ``name``, else under its own.

        The file is linked, and copied only where it can't be. A name that was given is not given again: the agent's
        files are named by what is in them. Raises: OSError.
        """
        path = self.given / (name or file.name)
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _link(file, path)
        return path

    def give_all(self, files: Iterable[Path]) -> None:
        """Let the executor read these files until ``give_all`` was called twice again: then they go from its folder.

        Twice, because an executor may still write one assignment's update when it has the next one. Raises: OSError.
        """
        lent = frozenset(self.give(file).name for file in files)
        still = lent.union(*self._lent[-1:])
        for name in frozenset[str]().union(*self._lent) - still:
            with suppress(OSError):
                (self.given / name).unlink(missing_ok=True)
        self._lent = (*self._lent[-1:], lent)

    def take(self, name: str) -> Path | None:
        """Take a file out of the scratch folder; return where it is now, or None if there is no such regular file.

        ``name`` is what the executor said: an absolute path. None for one outside, and for whatever a link leads to.
        An executor that has the file open can still change it: check what it is where it matters, on a copy.
        """
        try:
            parts = Path(name).relative_to(self.scratch).parts
        except ValueError:
            return None
        if not parts or ".." in parts or "\0" in name:
            return None
        taken = self.root / "taken" / str(next(self._taken))
        try:
            with ExitStack() as opened:
                folder = _open_folder(self.scratch, None, opened)
                for part in parts[:-1]:
                    folder = _open_folder(Path(part), folder, opened)
                if not stat.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                    return None
                os.rename(parts[-1], taken, src_dir_fd=folder)
        except OSError:
            return None
        if stat.S_ISREG(taken.lstat().st_mode):
            return taken
        _remove(taken)  # it was another file a moment ago
        return None

    def lend(self, file: Path, folder: str) -> Path:
        """Put a file into a folder of the scratch folder, for the executor to replace; return where it is to be.

        If there is no such file the folder is made all the same. A link that the executor put in place of the folder is
        not followed: what is lent would be written to where it leads. Raises: OSError.
        """
        with ExitStack() as opened:
            within = _own_folder(folder, _open_folder(self.scratch, None, opened), opened)
            with suppress(FileNotFoundError):
                os.unlink(file.name, dir_fd=within)
            if file.exists():
                _link(file, Path(file.name), within)
        return self.scratch / folder / file.name

    def remove(self) -> None:
        """Delete it with all that is in it, however deep, and whatever rights the executor gave its files."""
        with suppress(OSError):  # it is gone
            _wait_until_let_go(self.root / HOLD)
            _remove_all(self.root, Path(tempfile.mkdtemp(prefix="removing-", dir=self.root)))


def _wait_until_let_go(hold: Path) -> None:
    """Wait for what still ends in a room, outside of the executor; for a while, since it is our own and will end."""
    if not hold.exists():
        return
    import fcntl  # noqa: PLC0415  not on Windows, where nothing holds a room

    deadline = time.monotonic() + _HELD_SECONDS
    with hold.open("rb") as file:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_HELD_TURN_SECONDS)


def _link(file: Path, path: Path, within: int | None = None) -> None:
    """Link a file to a path where there is none yet; ``within`` is the folder that a relative one begins at."""
    try:
        os.link(file, path, dst_dir_fd=within)
    except OSError as error:
        if error.errno not in _NOT_LINKABLE:
            raise
        copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=within)
        with os.fdopen(copy, "wb") as to, file.open("rb") as source:
            shutil.copyfileobj(source, to)


def _own_folder(name: str, within: int, opened: ExitStack) -> int:
    """Open a folder in another one, and make it where something else lies in its place. Raises: OSError."""
    try:
        return _open_folder(Path(name), within, opened)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=within)
        os.mkdir(name, mode=0o700, dir_fd=within)
        return _open_folder(Path(name), within, opened)


def _open_folder(path: Path, within: int | None, opened: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    opened.callback(os.close, descriptor)
    return descriptor


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _remove_all(root: Path, flat: Path) -> None:
    """Delete a folder. Each one below is first moved into ``flat``, since a task decides how deep they lie.

    To go down after them would end at the longest path, at the most open files, or at Python's deepest call.
    """
    numbers, pending = count(), [root]
    while pending:
        folder = pending.pop()
        with suppress(OSError):
            for entry in list(os.scandir(folder)):
                with suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        Path(entry.path).unlink()
                    elif Path(entry.path) != flat:
                        pending.append(_move(Path(entry.path), flat / str(next(numbers))))
        if folder != root:
            with suppress(OSError):
                folder.rmdir()
    for emptied in (flat, root):
        with suppress(OSError):
            emptied.rmdir()


def _move(folder: Path, to: Path) -> Path:
    """Move a folder to where nothing leads to it, and return that; it may be changed then. Raises: OSError."""
    with suppress(OSError):
        folder.rename(to)
        to.chmod(0o700)
        return to
    folder.chmod(0o700)  # an ordinary user moves no folder that it can't write to
    folder.rename(to)
    return to
