"""What escape probes try to reach: a secret, sockets that wait, another program. It is gone after the proof."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from farm_client.sandbox.short_paths import short_path

_IPC_CREATE: Final = 0o1600
_IPC_REMOVE: Final = 0
_WAITS: Final = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # to be killed when the agent ends
if os.getppid() == int(sys.argv[1]):
    time.sleep(60)
"""
VARIABLE: Final = "FARM_PROBE_SECRET"


def _is_disturbed(pid: int) -> bool:
    """Whether a program has ended, or was sent a signal that it has not come to yet.

    By the kernel's word: on a busy machine asyncio hears of a child's end after a probe, or a case, is over.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return said["State"][0] in "ZX" or any(int(said[name], 16) for name in ("SigPnd", "ShdPnd"))


class Decoys:
    """All that the probes try to reach. Use as an asynchronous context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is one that a sandbox must hide, such as the agent's home."""
        self.mark = f"farm-decoy-{secrets.token_hex(8)}"
        self.secret = folder / f".{self.mark}"
        self.queue_key = secrets.randbelow(2**30) + 1
        self._closing = ExitStack()
        self._listeners: list[socket.socket] = []
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Make them. Raises: OSError."""
        self.secret.write_bytes(b"secret")
        self._closing.callback(self.secret.unlink, missing_ok=True)
        self.tcp_port = self._listen(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", self.tcp_port))
        self._watch(udp)
        self.unix_path = f"{self.secret}.socket"
        self._listen_at_path()
        self._listen(socket.AF_UNIX, f"\0{self.mark}")
        self._make_segment()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-E", "-c", _WAITS, str(os.getpid()), self.mark),
            stdin=asyncio.subprocess.DEVNULL,
            env={"FARM_DECOY": self.mark},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unmake them."""
        self._closing.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        """The process id of the other program."""
        assert self._process is not None  # noqa: S101  only used inside of the context
        return self._process.pid

    def reached(self) -> Iterator[str]:
        """Say what was reached, as it is seen from outside."""
        ready, _, _ = select.select(self._listeners, [], [], 0)
        for listener in ready:
            yield f"reach {listener.getsockname()!r}"
        if self._process is not None and _is_disturbed(self._process.pid):
            yield "end another program's process"
        if not self.secret.exists() or self.secret.read_bytes() != b"secret":
            yield f"change {self.secret}"

    def _listen(self, family: int, address: object) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind(address)  # type: ignore[arg-type]  # each family has addresses of its own
            listener.listen(8)
        except OSError:
            listener.close()
            raise
        self._watch(listener)
        return listener

    def _listen_at_path(self) -> None:
        """Listen on a Unix socket with a path; some file systems take none, and then there is nothing to reach."""
        try:
            with short_path(self.unix_path) as path:
                self._listen(socket.AF_UNIX, path)
        except OSError:
            self.unix_path = ""
        else:
            self._closing.callback(Path(self.unix_path).unlink, missing_ok=True)

    def _watch(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        self._closing.callback(listener.close)

    def _make_segment(self) -> None:
        """Make a System V shared memory segment of one page."""
        libc = ctypes.CDLL(None, use_errno=True)
        number = libc.shmget(self.queue_key, 4096, _IPC_CREATE)
        if number < 0:
            self.queue_key = 0  # a kernel without them: there is nothing to reach
            return
        self._closing.callback(libc.shmctl, number, _IPC_REMOVE, None)


def not_granted(devices: tuple[Path, ...]) -> tuple[str, ...]:
    """List the accelerators' device nodes of this machine that are not among ``devices``."""
    nodes = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("nvidiactl"), *Path("/dev").glob("kfd")]
    nodes += [
        *Path("/dev").glob("dri/render*"),
        *Path("/dev").glob("dxg"),
        *Path("/dev").glob("mem"),
        Path("/dev/kmsg"),
    ]
    nodes += [*Path("/dev").glob("[sv]d[a-z]"), *Path("/dev").glob("nvme[0-9]n[0-9]"), Path("/dev/fuse")]
    return tuple(str(node) for node in nodes if node not in devices and os.access(node, os.R_OK | os.W_OK))
