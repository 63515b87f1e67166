"""The escape probes: what a task must not be able to do, tried from inside of the very sandbox that is to hold it.

    python -P -m farm_client.sandbox.lifeline AGENT_PID INSIDE farm_client.sandbox.probes TARGETS

Prints one JSON object: the breaches found. Each probe does no harm where it succeeds: it reads a file that was made for
it, connects to a socket that waits for it, signals a process that does nothing. What ``prove`` sees from outside counts
beside what is printed here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from farm_client.sandbox.protection import Protection
from farm_client.sandbox.short_paths import short_path
from farm_client.sandbox.targets import Targets
from farm_client.sandbox.words import from_words

VERSION: Final = 2
"""Rises with each probe that is added or sharpened; a farm sees which ones a client's sandbox withstood."""
EXIT_BREACHED: Final = 96


class Breach(NamedTuple):
    """A probe that succeeded where it must not: the protection that is missing, and on what it was seen."""

    protection: str
    what: str


Probe = Callable[[Targets], Iterator[str]]
"""Yields on what it succeeded."""

_libc = ctypes.CDLL(None, use_errno=True)


def _can_read(path: str | Path) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  as little Python around it as possible
            file.read(1)
    except OSError:
        return False
    return True


def _can_make(folder: str) -> bool:
    path = Path(folder) / f".farm-probe-{os.getpid()}"
    try:
        path.touch(exist_ok=False)
    except OSError:
        return False
    with suppress(OSError):
        path.unlink()
    return True


def _probe_files(targets: Targets) -> Iterator[str]:
    if targets.secret_file and _can_read(targets.secret_file):
        yield f"read {targets.secret_file}"
    for folder in targets.secret_folders:
        with suppress(OSError):
            if not set(os.listdir(folder)) <= _ways(folder, targets):  # noqa: PTH208
                yield f"list {folder}"


def _ways(folder: str, targets: Targets) -> set[str]:
    """Return what a folder may show: the next step to each path that is meant to be seen."""
    ways: set[str] = set()
    for path in (*targets.visible, targets.scratch, targets.given_file):
        with suppress(ValueError):
            ways.update(Path(path).relative_to(folder).parts[:1])
    return ways


def _probe_read_only(targets: Targets) -> Iterator[str]:
    for name in _SETTINGS:
        with suppress(OSError):
            os.close(os.open(f"/proc/{name}", os.O_WRONLY))
            yield f"open the kernel's settings /proc/{name} for writing"
    for path in ("/", "/dev", *targets.visible, *targets.secret_folders):
        if Path(path).is_dir() and not _is_in_own_tmp(path, targets) and _can_make(path):
            yield f"make a file in {path}"
    if targets.given_file:
        with suppress(OSError):
            os.close(os.open(targets.given_file, os.O_WRONLY))
            yield f"open {targets.given_file} for writing"
        with suppress(OSError):
            os.truncate(targets.given_file, 0)
            yield f"truncate {targets.given_file}"
        with suppress(OSError):
            Path(targets.given_file).rename(targets.given_file + ".moved")
            yield f"rename {targets.given_file}"


_SETTINGS: Final = ("sys/kernel/core_pattern", "sys/vm/overcommit_memory", "sysrq-trigger", "mtrr")


def _is_in_own_tmp(path: str, targets: Targets) -> bool:
    """Return whether a folder is one on the way to what is given, in the sandbox's own /tmp."""
    has_own = Protection.SIZED_TMP not in targets.skipped
    return has_own and os.stat(path).st_dev == os.stat("/tmp").st_dev  # noqa: PTH116, S108


def _probe_network(targets: Targets) -> Iterator[str]:
    with suppress(OSError), socket.create_connection(("127.0.0.1", targets.tcp_port), timeout=1):
        yield f"connect to 127.0.0.1:{targets.tcp_port}"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"probe", ("127.0.0.1", targets.tcp_port))  # it was received if that is seen from outside
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("192.0.2.1", 9))  # a test network: this sends nothing, and succeeds where there is a route
        yield "find a route out of this machine"
    if targets.unix_path:
        with suppress(OSError), short_path(targets.unix_path) as path, socket.socket(socket.AF_UNIX) as unix:
            unix.connect(path)
            yield f"connect to the Unix socket {targets.unix_path}"
    with suppress(OSError), socket.socket(socket.AF_UNIX) as unix:
        unix.connect("\0" + targets.unix_abstract)
        yield f"connect to the abstract Unix socket {targets.unix_abstract}"


def _probe_processes(targets: Targets) -> Iterator[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if targets.decoy_mark.encode() in (folder / "environ").read_bytes():
                yield f"read {folder}/environ of another program"
    if targets.decoy_pid == os.getpid():
        return
    with suppress(OSError):
        os.kill(targets.decoy_pid, 0)
        if not Path(f"/proc/{targets.decoy_pid}/status").exists() or _is_decoy(targets):
            os.kill(targets.decoy_pid, signal.SIGTERM)
            yield "signal another program's process"


def _is_decoy(targets: Targets) -> bool:
    """Return whether the decoy's number is its own here, and not that of a process of this namespace."""
    try:
        return targets.decoy_mark.encode() in Path(f"/proc/{targets.decoy_pid}/cmdline").read_bytes()
    except OSError:
        return False


def _probe_ipc(targets: Targets) -> Iterator[str]:
    if targets.queue_key and _libc.shmget(targets.queue_key, 1, 0) >= 0:
        yield "open a shared memory segment of another program"


def _probe_host_name(targets: Targets) -> Iterator[str]:
    if targets.host_name and os.uname().nodename == targets.host_name:
        yield "read the machine's name"


def _probe_cgroups(targets: Targets) -> Iterator[str]:
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        if targets.cgroup and any(line.endswith(targets.cgroup) for line in lines):
            yield f"read the machine's control group {targets.cgroup}"


def _probe_capabilities(_targets: Targets) -> Iterator[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        # not the bounding set: without new privileges nothing of it can be gained
        if name in ("CapEff", "CapPrm", "CapInh", "CapAmb") and int(value, 16):
            yield f"hold capabilities ({name} {value.strip()})"
        if name == "NoNewPrivs" and value.strip() != "1":
            yield "gain privileges by a set-uid program"


def _probe_new_namespaces(_targets: Targets) -> Iterator[str]:
    child = os.fork()
    if child == 0:
        os._exit(0 if _libc.unshare(0x10000000) == 0 else 1)
    if os.waitpid(child, 0)[1] == 0:
        yield "make a user namespace"


class _Call(NamedTuple):
    """A forbidden system call: with these arguments an open kernel gives another error than a filter does."""

    name: str
    numbers: tuple[int, int]
    """On x86_64 and on aarch64."""
    arguments: tuple[int, ...]


_FORBIDDEN: Final = (
    _Call("ptrace", (101, 117), (0, 0, 0, 0)),
    _Call("process_vm_readv", (310, 270), (1, 0, 0, 0, 0, 0)),
    _Call("mount", (165, 40), (0, 0, 0, 0, 0)),
    _Call("bpf", (321, 280), (0, 0, 0)),
    _Call("perf_event_open", (298, 241), (0, 0, -1, -1, 0)),
    _Call("keyctl", (250, 219), (0, -3, 1)),
    _Call("userfaultfd", (323, 282), (1,)),
    _Call("io_uring_setup", (425, 425), (1, 0)),
    _Call("unshare", (272, 97), (0,)),
    _Call("setns", (308, 268), (-1, 0)),
    _Call("open_by_handle_at", (304, 265), (-1, 0, 0)),
    _Call("kcmp", (312, 272), (1, 1, 0, 0, 0)),
)
_REFUSED: Final = frozenset({errno.EPERM, errno.ENOSYS})


def _probe_system_calls(_targets: Targets) -> Iterator[str]:
    column = 0 if os.uname().machine == "x86_64" else 1
    for call in _FORBIDDEN:
        child = os.fork()  # ptrace of nobody makes the parent trace its caller
        if child == 0:
            ctypes.set_errno(0)
            result = _libc.syscall(call.numbers[column], *(ctypes.c_long(value) for value in call.arguments))
            os._exit(0 if result == -1 and ctypes.get_errno() in _REFUSED else 1)
        if os.waitpid(child, 0)[1] != 0:
            yield f"call {call.name}"
    for family, kind in ((socket.AF_PACKET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_RAW)):
        with suppress(OSError), socket.socket(family, kind):
            yield f"open a socket of family {family} and kind {kind}"
    with suppress(OSError):  # machines of a hypervisor reach it, and no network namespace is around that
        socket.socket(40, socket.SOCK_STREAM).close()
        yield "open a socket to the hypervisor"


HARMLESS_DEVICES: Final = frozenset(
    {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr"}
    | {"core", "console"}
)


def _probe_devices(targets: Targets) -> Iterator[str]:
    for device in targets.devices:
        with suppress(OSError):
            os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK))
            yield f"open {device}"
    with suppress(OSError):  # where it can't be listed, nothing in it is shown
        for name in sorted(set(os.listdir("/dev")) - HARMLESS_DEVICES - set(targets.granted)):  # noqa: PTH208
            if os.access(f"/dev/{name}", os.R_OK | os.W_OK):
                yield f"reach /dev/{name}"


def _probe_memory(targets: Targets) -> Iterator[str]:
    bound = targets.bounds.get("memory_bytes")
    if bound is None:
        return
    with (
        suppress(OSError, ValueError, MemoryError),
        mmap.mmap(-1, bound + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    ):
        yield f"map {bound + 4096} bytes of memory, over the bound"


def _probe_file_size(targets: Targets) -> Iterator[str]:
    bound = targets.bounds.get("file_bytes")
    if bound is None:
        return
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(targets.scratch) / "too-large"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        file.truncate(bound + 1)
        yield f"make a file of {bound + 1} bytes, over the bound"
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _probe_sized_tmp(targets: Targets) -> Iterator[str]:
    yield from _probe_size("/tmp", targets.bounds.get("tmp_bytes"))  # noqa: S108


def _probe_sized_shm(targets: Targets) -> Iterator[str]:
    yield from _probe_size("/dev/shm", targets.bounds.get("shm_bytes"))  # noqa: S108


def _probe_size(folder: str, bound: int | None) -> Iterator[str]:
    """A file system's size is asked for, and not tried out by filling it."""
    if bound is None or not _can_make(folder):
        return
    found = os.statvfs(folder)
    if found.f_blocks * found.f_frsize > bound + 2 * mmap.PAGESIZE:
        yield f"write over {bound} bytes to {folder}"


def _probe_forks(targets: Targets) -> Iterator[str]:
    """Last: what it starts is ended before it returns."""
    bound = targets.bounds.get("processes")
    if bound is None:
        return
    children = []
    try:
        for _ in range(4 * bound):  # where the kernel counts others too, some of them may just have ended
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
        yield f"start {4 * bound} processes, over the bound of {bound}"
    except OSError:
        return
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


_STDERR: Final = 2


def _probe_descriptors(_targets: Targets) -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            leads_to = str(Path(f"/proc/self/fd/{name}").readlink())
            if int(name) > _STDERR and not leads_to.startswith("/proc/"):
                yield f"use the inherited descriptor {name} ({leads_to})"


def _probe_environment(targets: Targets) -> Iterator[str]:
    if targets.variable and targets.variable in os.environ:
        yield f"read the variable {targets.variable}"


PROBES: Final[Mapping[Protection, Probe]] = {
    Protection.DESCRIPTORS: _probe_descriptors,
    Protection.ENVIRONMENT: _probe_environment,
    Protection.FILES: _probe_files,
    Protection.READ_ONLY: _probe_read_only,
    Protection.SIZED_TMP: _probe_sized_tmp,
    Protection.SIZED_SHM: _probe_sized_shm,
    Protection.DEVICES: _probe_devices,
    Protection.NETWORK: _probe_network,
    Protection.PROCESSES: _probe_processes,
    Protection.IPC: _probe_ipc,
    Protection.HOST_NAME: _probe_host_name,
    Protection.CGROUPS: _probe_cgroups,
    Protection.CAPABILITIES: _probe_capabilities,
    Protection.NEW_NAMESPACES: _probe_new_namespaces,
    Protection.SYSTEM_CALLS: _probe_system_calls,
    Protection.MEMORY: _probe_memory,
    Protection.FILE_SIZE: _probe_file_size,
    Protection.FORKS: _probe_forks,
}
"""One for each protection, in the order in which they are tried."""


def breaches(targets: Targets) -> Iterator[Breach]:
    """Try all probes but the skipped ones, and yield what succeeded."""
    for protection, probe in PROBES.items():
        if protection not in targets.skipped:
            for what in probe(targets):
                yield Breach(protection, what)


def main() -> int:
    """Probe, and print the breaches as one JSON object."""
    found = list(breaches(from_words(Targets, sys.argv[1])))
    sys.stdout.write(json.dumps({"probes": VERSION, "breaches": [list(breach) for breach in found]}) + "\n")
    return EXIT_BREACHED if found else 0


if __name__ == "__main__":
    sys.exit(main())
