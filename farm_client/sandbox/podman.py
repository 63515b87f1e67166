"""The container rung: a command in a rootless container of Podman's, with the agent's arguments and without an image.

Source: podman-run(1), containers.conf(5), storage.conf(5). The container's root is an empty folder, over which the
system, the interpreter and what the agent gives are mounted read-only, as on the strict rung. Podman keeps its state in
a folder of the room, so nothing of the volunteer's containers is touched or read, and all of it goes with the room.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sandbox.policy import SandboxPolicy
from farm_client.sandbox.protection import ALL, Protection
from farm_client.sandbox.room import Room

_USER: Final = "1000"
"""Inside, a task is an ordinary user: the volunteer's, and the only one that there is a number for."""
_HOST_NAME: Final = "farm"
_CGROUP_FILES: Final = Path("/sys/fs/cgroup")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_EMPTY_BYTES: Final = 4096
_UNBOUNDED_BYTES: Final = 2**50
_STANDARD: Final = 3
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""How the kernel writes a blank in a path."""
_NAMESPACES: Final = {
    Protection.NETWORK: ("--network", "none"),
    Protection.PROCESSES: ("--pid", "private"),
    Protection.IPC: ("--ipc", "private"),
    Protection.HOST_NAME: ("--uts", "private"),
    Protection.CGROUPS: ("--cgroupns", "private"),
}
_CONFIGURATION: Final = """[containers]
env = []
default_ulimits = []
volumes = []
devices = []
mounts = []
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One container for its keeper (``container.py``) to run, with ``command`` in it.

    ``folder``: Podman's own, made anew. ``links``: those of the container's root. ``keep``: descriptors that it passes.
    """

    binary: str
    folder: str
    options: tuple[str, ...]
    links: Mapping[str, str]
    keep: tuple[int, ...]
    command: tuple[str, ...]

    def arguments(self, environment: Mapping[str, str]) -> list[str]:
        """Return Podman's command line; the container's environment is on it, since Podman's own is another one."""
        variables = (f"--env={name}={value}" for name, value in environment.items())
        passed = lifeline_number(self.keep) - _STANDARD + 1
        return [
            *(self.binary, "--log-level=fatal", f"--tmpdir={Path(self.folder, 'tmp')}", "run"),
            *(*self.options, f"--preserve-fds={passed}", *variables),
            *("--rootfs", f"{self.folder}/root", *self.command),
        ]

    def prepare(self) -> dict[str, str]:
        """Make the folder, and return Podman's whole environment: no configuration but this. Raises: OSError."""
        folder = Path(self.folder)
        for name in ("run", "root", "tmp", "store", "empty"):
            (folder / name).mkdir(mode=0o700, parents=True)
        for link, target in self.links.items():
            (folder / "root" / Path(link).relative_to("/")).symlink_to(target)
        (folder / "containers.conf").write_text(_CONFIGURATION)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
        )
        homes = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"), self.folder)
        return {
            **homes,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "GOMAXPROCS": "2",  # its threads count while it starts the container
        }


def binaries() -> Iterator[Path]:
    """List the Podmans to try: the system's."""
    if (system := shutil.which("podman", path="/usr/bin:/bin:/usr/local/bin")) is not None:
        yield Path(system)


def lifeline_number(keep: Iterable[int]) -> int:
    """Return the number of the lifeline's descriptor: the one after those that are passed."""
    return max(keep, default=_STANDARD - 1) + 1


def container_folder(room: Room) -> Path:
    """Return the folder of a room that Podman keeps its state in. It is hidden from the container."""
    return room.root / "container"


def options(policy: SandboxPolicy, room: Room, up: Collection[Protection] = ALL) -> Iterator[str]:
    """List the options of ``podman run``. ``up``: the protections, all but in tests of their absence.

    Raises: ValueError for a path that can't be named to Podman.
    """
    # started, and left to its monitor: then Podman itself, of 40 MB, is gone, and the output is inherited as it is
    yield from ("--detach", "--log-driver=passthrough", "--systemd=false", "--http-proxy=false", "--unsetenv-all")
    yield from ("--no-hosts", "--passwd=false", f"--workdir={room.scratch}")
    if Protection.HOST_NAME in up:
        yield f"--hostname={_HOST_NAME}"
    # one number inside, for the user's own outside: no range of further ones (/etc/subuid) is needed or left in files
    yield from (f"--uidmap={_USER}:0:1", f"--gidmap={_USER}:0:1", f"--user={_USER}:{_USER}")
    # what bounds hold is the process's own limits, and measuring, as on the other rungs: see docs/adr/0085
    yield from ("--cgroups=disabled", "--ulimit=host")
    yield "--security-opt=label=disable"  # nothing of the system is labelled for containers, nor must be
    for protection, (option, value) in _NAMESPACES.items():
        yield f"{option}={value if protection in up else 'host'}"
    if Protection.CAPABILITIES in up:
        yield from ("--cap-drop=all", "--security-opt=no-new-privileges")
    else:
        yield "--cap-add=all"
    if Protection.SYSTEM_CALLS not in up:
        yield "--security-opt=seccomp=unconfined"
    yield from _files(policy, room, up)


def _files(policy: SandboxPolicy, room: Room, up: Collection[Protection]) -> Iterator[str]:
    bounds, view, mode = policy.bounds, policy.view, "ro" if Protection.READ_ONLY in up else "rw"
    if Protection.READ_ONLY in up:
        yield from ("--read-only", "--read-only-tmpfs=false")
    if Protection.DEVICES in up:
        # of Podman's own /dev the task would be the owner, and files in it would be memory that nobody counts
        yield _empty("/dev", f"ro={str(Protection.READ_ONLY in up).lower()},tmpfs-mode=755")
        yield from (_bind(device, "rw") for device in view.devices)
    else:
        yield _bind(Path("/dev"), "rw")
    if not any(path == Path("/sys") for path in view.read_only):
        yield _empty("/sys", "ro=true")
    yield _bind(container_folder(room) / "empty", "ro", _CGROUP_FILES)
    size = f",size={bounds.tmp_bytes}" if Protection.SIZED_TMP in up else ""
    yield f"--tmpfs=/tmp:rw,nosuid,nodev,mode=1777{size}"
    if Protection.IPC in up:
        yield f"--shm-size={bounds.shm_bytes if Protection.SIZED_SHM in up else _UNBOUNDED_BYTES}"
    seen = (*view.read_only, room.given, *(policy.secrets if Protection.FILES not in up else ()))
    for path in (*seen, *mounted_below(seen, _MOUNTS.read_text())):
        yield _bind(path, mode)
    yield _bind(room.scratch, "rw,nosuid,nodev")


def _empty(folder: str, how: str) -> str:
    return f"--mount=type=tmpfs,destination={folder},tmpfs-size={_EMPTY_BYTES},{how}"


def _bind(path: Path, mode: str, place: Path | None = None) -> str:
    if ":" in str(path):
        raise ValueError(f"Podman can't be told to mount {path}: there is a colon in its name")
    return f"--volume={path}:{place or path}:{mode}"


def mounted_below(folders: Collection[Path], mounts: str) -> list[Path]:
    """List what is mounted in folders, by the kernel's list of mounts (proc(5), mountinfo).

    Podman mounts it there too, and without a word each would stay as writable as it is. What can't be looked at here
    can't be there either.
    """
    places = {Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4])) for line in mounts.splitlines()}
    return sorted(
        place
        for place in places - set(folders)
        if any(place.is_relative_to(folder) for folder in folders)
        and not place.is_relative_to(_CGROUP_FILES)
        and place.exists()
    )
