"""Leases blobs from the agent that runs in this machine's own home, if one does and has them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from farm_client.agent.blobs.cache_files import Look, look_if_sound
from farm_client.agent.errors import NoControlSocket
from farm_client.agent.home.local_socket import is_of_this_user, socket_address, socket_family
from farm_client.agent.sharing.records import LENT, REFUSED, Wish, request

_PATIENCE_SECONDS: Final = 2.0
"""For an answer; a lender that first has to read a blob of an earlier run may need longer: then it is downloaded."""
_COPY_BYTES: Final = 4 * 1024 * 1024
_AVOIDED_SECONDS: Final = 60.0
"""Who did not answer is not asked again for so long: each download would wait for it."""


class HostBlobs:
    """The blobs of another agent of this machine. Calls block, one at a time: for a thread.

    Whatever goes wrong, nothing is brought, and the blob is downloaded: a lender that is dead, hangs, or is killed in
    the midst of an answer costs ``_PATIENCE_SECONDS`` at most.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """``path``: the lender's socket."""
        self._path = path
        self._clock = clock
        self._connection: socket.socket | None = None
        self._avoided_until = float("-inf")
        self._leased: set[str] = set()

    def bring(self, digest: str, path: Path) -> Look | None:
        """Put a blob at ``path``, and return what it looks like; None, and nothing is there, if it is not to be had.

        Where the file system can, it is the lender's own file, which executors of both map once; the lender keeps it
        until ``end``, or until this process ends. Else it is a copy, and the lease is over.

        Raises: OSError if this machine can't take it, as with a full disk.
        """
        handle = self._lease(digest)
        if handle is None:
            return None
        is_the_same = False
        try:
            path.unlink(missing_ok=True)
            is_the_same = _link(handle, path)
            if not is_the_same:
                _copy(handle, path)
            look = look_if_sound(path, digest)
        except OSError:
            path.unlink(missing_ok=True)
            self.end(digest)
            raise
        finally:
            os.close(handle)
        if look is None:
            path.unlink(missing_ok=True)
        if look is None or not is_the_same:
            self.end(digest)
        return look

    def _lease(self, digest: str) -> int | None:
        """Return a read-only handle of a blob; None if there is none."""
        if self._clock() < self._avoided_until:
            return None
        try:
            connection = self._connection or self._connect()
            connection.sendall(request(Wish.LEASE, digest))
            answer, handles, _, _ = socket.recv_fds(connection, 1, 1)
        except (OSError, NoControlSocket) as error:
            self._drop(avoid=isinstance(error, TimeoutError))
            return None
        if answer == LENT and handles:
            self._leased.add(digest)
            return handles[0]
        for handle in handles:
            os.close(handle)
        if answer != REFUSED:  # it ended, or speaks otherwise
            self._drop()
        return None

    def end(self, digest: str) -> None:
        """Give a blob back."""
        if digest not in self._leased or self._connection is None:
            return
        self._leased.discard(digest)
        try:
            self._connection.sendall(request(Wish.END, digest))
        except OSError:
            self._drop()

    def end_all_but(self, is_kept: Callable[[str], bool]) -> None:
        """Give back what is not kept any more."""
        for digest in [digest for digest in self._leased if not is_kept(digest)]:
            self.end(digest)

    def close(self) -> None:
        """Give everything back."""
        self._drop()

    def _connect(self) -> socket.socket:
        with ExitStack() as failed:
            connection = failed.enter_context(socket.socket(socket_family(), socket.SOCK_STREAM))
            connection.settimeout(_PATIENCE_SECONDS)
            with socket_address(self._path) as address:
                connection.connect(address)
            if not is_of_this_user(connection):  # files of another user's could change under us
                raise PermissionError("another user's agent")
            failed.pop_all()
        self._connection = connection
        return connection

    def _drop(self, *, avoid: bool = False) -> None:
        if avoid:
            self._avoided_until = self._clock() + _AVOIDED_SECONDS
        self._leased.clear()
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None


def _link(handle: int, path: Path) -> bool:
    """Give the file of a handle a second name; False where that can't be, as over a file system's bounds."""
    try:
        own = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.link(str(handle), path, src_dir_fd=own, follow_symlinks=True)
    except OSError:
        return False
    finally:
        os.close(own)
    return True


def _copy(handle: int, path: Path) -> None:
    with open(handle, "rb", closefd=False) as source, path.open("xb") as copy:
        shutil.copyfileobj(source, copy, _COPY_BYTES)
