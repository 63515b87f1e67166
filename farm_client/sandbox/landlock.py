"""Landlock: a process gives up all files but those that it names, TCP, and signals to others, for good.

By the kernel's interface itself (Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h), and closed
where it can fail: a rule that can't be added is an error, and no path is left out in silence. What a kernel's ABI
doesn't know isn't governed: ``abi`` says which it is, and docs/sandbox.md what that leaves open.

A process under Landlock can't trace processes outside its domain either, nor read what ptrace guards of them in /proc
(memory, environment, descriptors).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sandbox import system
from farm_client.sandbox.errors import SandboxUnavailable

SCOPES_ABI: Final = 6
"""Linux 6.12. From it on signals, and Unix sockets without a path, are kept in as well."""
MIN_ABI: Final = 3
"""Linux 6.2. Before it a file could be cut to nothing by its path, wherever it was."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # from ABI 2, 3 and 5
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1  # from ABI 4
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1  # from ABI 6

_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_EDIT: Final = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE
_DEVICE: Final = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
# Not _MAKE_CHAR nor _MAKE_BLOCK: whoever may make device nodes, as root may, would make the disk's.
_WRITE: Final = (
    _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV | _REFER | _REMOVE_DIR | _REMOVE_FILE
    | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM
)  # fmt: skip
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""What the rule of a file may grant; the others are of folders, and the kernel refuses them (EINVAL)."""

_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_PROC: Final = Path("/proc")
_PROC_FILES: Final = (
    "cpuinfo", "meminfo", "stat", "loadavg", "version", "filesystems", "sys/kernel/osrelease",
    "sys/kernel/cap_last_cap", "sys/vm/overcommit_memory", "sys/vm/max_map_count", "sys/net/core/somaxconn",
)  # fmt: skip
_pinned: list[int] = []
"""Descriptors of what is kept of /proc. A rule holds on to an inode, and procfs makes another one when it has dropped a
path from memory for want of room: the path would then be under no rule. It drops none that is open."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a process keeps; all else of the file system is closed to it.

    Attributes:
        read: files, and folders with all beneath, to read and to execute.
        write: folders, with all beneath, and files to read, to execute and to change: make (no device nodes), remove,
            truncate, rename from one to another, link.
        edit: existing files, and those beneath folders, to read and to write, without making or removing any.
        devices: single device nodes to read, to write and to command (ioctl).

    A path that may be changed is no symbolic link: what lies there may be the work of the task before.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    edit: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()

    def __or__(self, other: Rules) -> Rules:
        """Return the rules that keep what either keeps."""
        return Rules(
            self.read + other.read, self.write + other.write, self.edit + other.edit, self.devices + other.devices
        )


class _RulesetAttr(ctypes.Structure):
    """A struct landlock_ruleset_attr."""

    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneathAttr(ctypes.Structure):
    """A struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """Return the version of the kernel's interface; 0 where Landlock is not built in, or not turned on at boot."""
    try:
        return system.call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except (OSError, SandboxUnavailable):
        return 0


def proc_rules(pid: int) -> Rules:
    """Return what a process needs of /proc, and no other process's: its own folder and what tells of the machine.

    The names of its threads are to be written (``/proc/self/task/*/comm``): CUDA names those that it starts. A child
    has another folder, and nothing of it. Of the machine's files those are named that this kernel has.
    """
    own = _PROC / str(pid)
    return Rules(
        read=(own, *(path for path in map(_PROC.joinpath, _PROC_FILES) if path.exists())),
        edit=(own / "task",),
    )


def restrict(rules: Rules) -> None:
    """Keep this process, and what it starts from now on, to the rules: for good.

    It must be the process's only thread: others would stay as they are. Descriptors that are open stay open, and may
    be used as they were opened. It keeps one open, until it runs another program, for each path of /proc in the rules.

    Raises: SandboxUnavailable, naming the reason or the path, if anything can't be done; then the process is as it was,
        but that it can't gain privileges any more.
    """
    version = abi()
    if version < MIN_ABI:
        found = f"its ABI is {version}" if version else "there is none"
        raise SandboxUnavailable(
            f"Landlock confines files from ABI {MIN_ABI} on (Linux 6.2), and {found} on this kernel"
        )
    with ExitStack() as opened:
        try:
            _be_alone()
            governed = _governed(version)
            ruleset = system.call("landlock_create_ruleset", governed, ctypes.sizeof(governed), 0)
            opened.callback(os.close, ruleset)
            _add_all(ruleset, rules, governed.fs, opened)
            system.give_up_privileges()
            system.call("landlock_restrict_self", ruleset, 0)
        except OSError as error:
            raise SandboxUnavailable(f"Landlock does not confine this process: {error}") from error


def _governed(version: int) -> _RulesetAttr:
    """Return all that an ABI can govern; what is newer than ABI 7 is left out. Nothing of the network is granted."""
    files = _WRITE | _MAKE_CHAR | _MAKE_BLOCK
    if version < 5:
        files &= ~_IOCTL_DEV
    network = _BIND_TCP | _CONNECT_TCP if version >= 4 else 0
    scopes = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    return _RulesetAttr(files, network, scopes)


def _be_alone() -> None:
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names alone are needed
    if threads != 1:
        raise SandboxUnavailable(f"Landlock confines one thread, and this process has {threads}: confine it first")


def _add_all(ruleset: int, rules: Rules, governed: int, opened: ExitStack) -> None:
    for paths, rights in ((rules.read, _READ), (rules.write, _WRITE), (rules.edit, _EDIT), (rules.devices, _DEVICE)):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if rights != _READ else 0))
                if path.is_relative_to(_PROC):
                    _pinned.append(descriptor)
                else:
                    opened.callback(os.close, descriptor)
                allowed = governed & _grantable(descriptor, rights)
                system.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, _PathBeneathAttr(allowed, descriptor), 0)
            except OSError as error:
                raise SandboxUnavailable(f"Landlock takes no rule for {path}: {error.strerror}") from error


def _grantable(descriptor: int, rights: int) -> int:
    """Return what of some rights the kernel lets a rule for this file or folder grant.

    Raises: OSError for what must not be granted: a link may have been put there by the last task, to lead elsewhere; a
        "device" that is a folder would be all beneath it.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a symbolic link, and what may be changed is named by its own path")
    if rights == _DEVICE and not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise OSError(errno.ENODEV, "it is no device")
    return rights if stat.S_ISDIR(mode) else rights & _OF_FILES
