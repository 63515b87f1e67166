"""The simplest program that moves a file through a loopback socket onto a disk: what a blob's way is compared with.

A server process takes a file (read into one buffer, written, synced, renamed, acknowledged), and gives it back
by ``sendfile``. No requests, no hashes, no parts, no resuming.

Run as ``python -m benchmarks.raw_copy FOLDER``; it prints its port and serves one connection after the other.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
BLOCK_BYTES: Final = 1024 * 1024
_UP: Final = b"U"
_HEAD: Final = struct.Struct("!cQ")


def receive_file(connection: socket.socket, path: Path, size_bytes: int) -> int:
    """Write what comes into a file; return its descriptor, still open."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    block, left = memoryview(bytearray(BLOCK_BYTES)), size_bytes
    while left:
        count = connection.recv_into(block[: min(left, BLOCK_BYTES)])
        if not count:
            raise ConnectionError("the peer went away")
        os.write(handle, block[:count])
        left -= count
    return handle


def serve(folder: Path) -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                _serve_one(connection, folder)


def _serve_one(connection: socket.socket, folder: Path) -> None:
    way, size_bytes = _HEAD.unpack(connection.recv(_HEAD.size, socket.MSG_WAITALL))
    path = folder / "raw"
    if way == _UP:
        handle = receive_file(connection, folder / "raw.tmp", size_bytes)
        os.fsync(handle)
        os.close(handle)
        (folder / "raw.tmp").replace(path)
        connection.sendall(b"!")
    else:
        with path.open("rb") as file:
            connection.sendfile(file)


@contextmanager
def raw_server(folder: Path) -> Iterator[int]:
    """Run the server for the length of the block; gives its port."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.raw_copy", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def upload_seconds(port: int, path: Path) -> float:
    """Send a file, and return the seconds until it was on the other side's disk."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection, path.open("rb") as file:
        connection.sendall(_HEAD.pack(_UP, path.stat().st_size))
        connection.sendfile(file)
        if connection.recv(1) != b"!":
            raise ConnectionError("the server did not acknowledge")
    return time.perf_counter() - began


def download_seconds(port: int, path: Path, size_bytes: int) -> float:
    """Fetch what was sent last into a file, which is not synced, and return the seconds that it took."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_HEAD.pack(b"D", size_bytes))
        os.close(receive_file(connection, path, size_bytes))
    return time.perf_counter() - began


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
