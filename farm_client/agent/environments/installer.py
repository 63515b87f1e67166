"""Installs pins into a folder, by uv: wheels alone, each of a hash that the lock names, and nothing is ever built.

uv runs in a process of its own, which is the only one of the client's that talks to a package index. Whatever it leaves
is measured while it runs. Nothing of a package is executed: hashes are compared, archives unpacked, sources compiled to
bytecode.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

from farm_client.agent.environments.store import measure
from farm_client.agent.errors import NoEnvironment
from farm_client.sandbox.ending import end_all
from protocol.wording import sized

PROCESS: Final = "farm_client.agent.environments.uv_process"
INSTALL_UV: Final = "uv is not installed: pip install 'aifarm[installs]'"
_INDEX_VARIABLES: Final = ("PIP_INDEX_URL",)
_PASSED_ON: Final = (
    *("PATH", "HOME", "LANG", "TMPDIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS", "NETRC"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX_STRATEGY", "UV_FIND_LINKS"),
    *("UV_HTTP_TIMEOUT", "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER"),
)
"""Of the agent's environment: how the machine reaches its package index, and nothing else. Tokens are not among it."""
_MEASURE_SECONDS: Final = 0.5
_LAST_BYTES: Final = 4000
_FRAMES: Final = " \t\u00d7\u2570\u2500\u25b6\u251c\u2502\u00b7"
"""What uv draws around its errors."""
_NO_ERRORS: Final = ("Using ", "Resolved", "Prepared", "warning:")
_ADDRESS: Final = re.compile(r"\S*://\S+")
_MOST_REASON_CHARS: Final = 400


class Installable(Protocol):
    """What is installed: a pin, whose module an idle agent need not import."""

    @property
    def line(self) -> str:
        """The pin as a line of a lock."""


@dataclass(frozen=True, slots=True)
class InstallBounds:
    """How long an installation may take, and how much of the disk it may fill while it runs."""

    seconds: float
    max_bytes: int


def find_uv() -> Path | None:
    """Return where uv is: its wheel's, else the one on the PATH; None if there is none."""
    with suppress(ImportError, OSError):
        return Path(import_module("uv").find_uv_bin())
    found = shutil.which("uv")
    return None if found is None else Path(found)


def command(uv: Path, folder: Path, index: str | None) -> list[str]:
    """Return how uv is called to install ``lock.txt`` of a folder into its ``packages``."""
    told = index or next((value for name in _INDEX_VARIABLES if (value := os.environ.get(name))), None)
    return [
        *(str(uv), "pip", "install", "--requirements", str(folder / "lock.txt")),
        *("--target", str(folder / "packages"), "--cache-dir", str(folder / "cache"), "--link-mode", "hardlink"),
        *("--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-config", "--compile-bytecode"),
        *("--python", sys.executable, "--no-python-downloads", "--no-progress", "--color", "never"),
        *(("--default-index", told) if told else ()),
    ]


async def install(
    pins: Iterable[Installable],
    folder: Path,
    bounds: InstallBounds,
    index: str | None = None,
    on_size: Callable[[int], None] = lambda _: None,
) -> None:
    """Install pins into ``folder/packages``. ``on_size`` gets the bytes that lie in the folder meanwhile.

    If this is cancelled, uv ends. Raises: NoEnvironment in a sentence without addresses; OSError if it can't run.
    """
    if (uv := find_uv()) is None:
        raise NoEnvironment(INSTALL_UV)
    lines = [pin.line for pin in pins]
    if not lines:
        return
    (folder / "lock.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", PROCESS, str(os.getpid()), *command(uv, folder, index)),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        cwd=folder,
        env=_environment(os.environ),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(bounds.seconds):
            exit_code, said = await _watched(process, folder, bounds, on_size)
    except TimeoutError:
        raise NoEnvironment(f"the installation took over {bounds.seconds:.0f} s") from None
    finally:
        end_all(process.pid)
        await process.wait()
    if exit_code != 0:
        raise NoEnvironment(_reason(said, exit_code))
    (folder / "packages" / ".lock").unlink(missing_ok=True)  # uv's own


async def _watched(
    process: Process, folder: Path, bounds: InstallBounds, on_size: Callable[[int], None]
) -> tuple[int, bytes]:
    """Wait for uv; return its exit code and its last words. Raises: NoEnvironment over the bound."""
    assert process.stderr is not None  # noqa: S101  a pipe was asked for
    reading = asyncio.get_running_loop().create_task(_tail(process.stderr))
    waiting = asyncio.get_running_loop().create_task(process.wait())
    try:
        while not waiting.done():
            await asyncio.wait((waiting,), timeout=_MEASURE_SECONDS)
            size_bytes, _ = await asyncio.to_thread(measure, folder)
            on_size(size_bytes)
            if size_bytes > bounds.max_bytes:
                raise NoEnvironment(f"it takes over {sized(bounds.max_bytes)}, the most that this machine keeps")
        return await waiting, await reading
    finally:
        waiting.cancel()
        reading.cancel()


async def _tail(stream: asyncio.StreamReader) -> bytes:
    last = b""
    while data := await stream.read(_LAST_BYTES):
        last = (last + data)[-_LAST_BYTES:]
    return last


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {name: inherited[name] for name in _PASSED_ON if name in inherited}


def _reason(said: bytes, exit_code: int) -> str:
    """Return why uv failed, in one line for owners and researchers: without addresses, which are the owner's."""
    text = _ADDRESS.sub("…", said.decode("utf-8", "replace"))
    words = [line.strip(_FRAMES) for line in text.splitlines()]
    kept = [line for line in words if line and not line.startswith(_NO_ERRORS)]
    return f"uv could not install it: {' '.join(kept)[:_MOST_REASON_CHARS] or f'it ended with {exit_code}'}"
