"""Filters of system calls: what a task's code may ask of the kernel, as a seccomp program.

Three answers: a call that a task may need is made; one that the table knows and no task needs fails with EPERM; one
that the table doesn't know fails with ENOSYS, as on an older kernel, so that libraries fall back. A call of another
architecture's ABI (32-bit, x32), whose numbers mean other calls, kills the process.

Two variants. ``namespaces=True`` stands behind namespaces of its own: other processes, the network and System V IPC
can't be named there, so it guards the kernel, by leaving out what escapes were made of. ``namespaces=False`` stands
beside Landlock, and closes what Landlock doesn't govern: sockets, System V IPC, modes, times and owners of files,
other processes' priorities and limits, and leaving the process group. Filters look at numbers, never behind pointers:
no path, no socket address.

``build_filter`` is pure; ``install`` is for good, and for every thread and child of the process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Final

from farm_client.sandbox import system
from farm_client.sandbox.bpf import (
    ARCHITECTURE,
    NUMBER,
    Compare,
    Comparison,
    Decision,
    LoadWord,
    Return,
    argument,
    assemble,
    by_range,
    one_of,
)
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.syscalls import ALLOWED, NUMBERS


def _fails(error: int) -> Return:
    """Answer with an error, the call unmade: SECCOMP_RET_ERRNO. 0 is no error: the call is said to have succeeded."""
    return Return(0x00050000 | error)


_ALLOW: Final = Return(0x7FFF0000)
_KILL: Final = Return(0x80000000)  # the process, not the thread
# Linux's numbers, which are those of both machines, whatever the system is that builds the filter.
_EPERM: Final = _fails(1)
_ENOSYS: Final = _fails(38)
_EPROTONOSUPPORT: Final = _fails(93)
_ENOTSUP: Final = _fails(95)
_EAFNOSUPPORT: Final = _fails(97)
_NOTHING: Final = _fails(0)

_AUDIT_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000
_NO_CALL: Final = 0xFFFFFFFF
"""-1, the number that libraries use for a call that their headers lacked: it is unknown, not of x32."""

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET = 1, 2, 5
_SOCK_TYPE_MASK: Final = 0xF  # beside it are SOCK_NONBLOCK and SOCK_CLOEXEC
_IPPROTO_DEFAULT, _IPPROTO_TCP, _IPPROTO_UDP = 0, 6, 17
_CLONE_NEW: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_PARENT: Final = 0x00008000  # a child of the agent that the agent never started
_TERMINAL: Final = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX: type into the terminal that the agent was started from."""
_FILE_FLAGS: Final = (0x40086602, 0x401C5820, 0x40806685)
"""FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY: the owner's, through a descriptor that only reads."""
_OWNER_IOCTLS: Final = (0x8901, 0x8902)
"""FIOSETOWN, SIOCSPGRP: whom a descriptor sends its signals."""
_OWNER_FCNTLS: Final = (8, 15)
"""F_SETOWN, F_SETOWN_EX: the same."""
_PERSONALITIES: Final = (0, 0xFFFFFFFF)  # Linux as it is; what it is now


def _only(index: int, values: Sequence[int], otherwise: Return = _EPERM, then: Decision = _ALLOW) -> Decision:
    """Go on where an argument has one of the values; else fail."""
    return LoadWord(argument(index), one_of(values, then, otherwise))


def _not(index: int, values: Sequence[int]) -> Decision:
    """Refuse where an argument has one of the values."""
    return LoadWord(argument(index), one_of(values, _EPERM, _ALLOW))


def _socket_types(types: Sequence[int], then: Decision = _ALLOW) -> Decision:
    return LoadWord(argument(1), one_of(types, then, _EPERM), mask=_SOCK_TYPE_MASK)


def _each(names: str, decision: Decision) -> dict[str, Decision]:
    return dict.fromkeys(names.split(), decision)


_PROTOCOLS: Final = _only(2, (_IPPROTO_DEFAULT, _IPPROTO_TCP, _IPPROTO_UDP), _EPROTONOSUPPORT)
_COMMON: Final[dict[str, Decision]] = {
    "clone": LoadWord(argument(0), Compare(Comparison.HAS_ANY_BIT, _CLONE_NEW | _CLONE_PARENT, _EPERM, _ALLOW)),
    "clone3": _ENOSYS,  # its flags are behind a pointer; the C library then calls clone
    "personality": _only(0, _PERSONALITIES),
}
_BEHIND_NAMESPACES: Final = _COMMON | {
    # SOCK_RAW and SOCK_PACKET read the wire; rarer protocols would load their modules.
    "socket": _only(
        0,
        (_AF_UNIX, _AF_INET, _AF_INET6),
        _EAFNOSUPPORT,
        _socket_types((_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET), _PROTOCOLS),
    ),
    "socketpair": _only(0, (_AF_UNIX,), _EAFNOSUPPORT),
    "ioctl": _not(1, _TERMINAL),
}
_BY_DESCRIPTOR: Final = LoadWord(argument(1), one_of((0,), _NOTHING, _EPERM))
# Who sets a file's times to now, by its path, asks whether it is there, and makes it where it is not (Path.touch): that
# nothing was done must be said. Who copies times names them, and who has the file open need not ask.
_BESIDE_LANDLOCK: Final = (
    _COMMON
    | {
        "socket": _EPERM,
        # An end of a pair of streams stays with its peer. One that sends datagrams sends them to any name that it
        # likes: to syslog, to the service manager.
        "socketpair": _only(0, (_AF_UNIX,), _EAFNOSUPPORT, _socket_types((_SOCK_STREAM, _SOCK_SEQPACKET))),
        "ioctl": _not(1, _TERMINAL + _FILE_FLAGS),
        "setpriority": _only(0, (0,), then=_only(1, (0,))),  # PRIO_PROCESS, this one
        "ioprio_set": _only(0, (1,), then=_only(1, (0,))),  # IOPRIO_WHO_PROCESS, this one
    }
    | _each("prlimit64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler", _only(0, (0,)))
    | _each("setsid setpgid", _EPERM)  # whoever kills the process group reaches every descendant
    | _each("chmod fchmod fchmodat fchmodat2 utime utimes futimesat", _NOTHING)  # copying a file does these
    | {
        "utimensat": LoadWord(argument(2), one_of((0,), _BY_DESCRIPTOR, _NOTHING)),
    }
    | _each("chown fchown lchown fchownat", _EPERM)
    | _each("setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat", _ENOTSUP)
    | _each("inotify_add_watch process_mrelease", _EPERM)  # names of the volunteer's files; other processes' memory
    | _each("mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr", _EPERM)
    | _each("msgget msgsnd msgrcv msgctl semget semop semtimedop semctl shmget shmat shmdt shmctl", _EPERM)
)


def _to_itself(pid: int) -> dict[str, Decision]:
    """Return the rules where nothing else keeps signals in: to the one process, and by no other way.

    raise(), pthread_kill() and abort() of that process work; its children can't signal at all, nor be signalled by it.
    """
    return (
        _each("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", _only(0, (pid,)))
        | _each("pidfd_open pidfd_send_signal", _EPERM)
        | {
            "fcntl": _not(1, _OWNER_FCNTLS),
            "ioctl": _not(1, _TERMINAL + _FILE_FLAGS + _OWNER_IOCTLS),
        }
    )


def _rules(*, namespaces: bool, scoped_signals: bool, pid: int) -> dict[str, Decision]:
    """Return what is decided on each call that is more than refused."""
    rules: dict[str, Decision] = dict.fromkeys(ALLOWED, _ALLOW)
    if namespaces:
        return rules | _BEHIND_NAMESPACES
    return rules | _BESIDE_LANDLOCK | ({} if scoped_signals else _to_itself(pid))


def build_filter(
    machine: str,
    *,
    namespaces: bool,
    scoped_signals: bool = False,
    memory_files: bool = True,
    pid: int | None = None,
) -> bytes:
    """Return the program, an array of struct sock_filter, that decides on the system calls of a process.

    Args:
        machine: ``x86_64`` or ``aarch64`` (or ``arm64``, as other systems call it).
        namespaces: the process has namespaces of its own (pid, ipc, network, mount): the laxer variant.
        scoped_signals: something else, Landlock from ABI 6 on, keeps its signals in. Without it and without namespaces
            the process may signal itself and nobody else.
        memory_files: the process may make files of memory, which count to no process: by no limit, in no figure.
        pid: that process, by default the caller. It must lead its process group: then the number stays its own as long
            as any process of the group lives.

    Raises: SandboxUnavailable for another machine.
    """
    name = {"arm64": "aarch64"}.get(machine, machine)
    if name not in NUMBERS:
        raise SandboxUnavailable(f"no table of system calls for {machine}; join from {' or '.join(NUMBERS)}")
    rules = _rules(namespaces=namespaces, scoped_signals=scoped_signals, pid=os.getpid() if pid is None else pid)
    if not memory_files:
        rules["memfd_create"] = _EPERM
    decisions = {number: rules.get(call, _EPERM) for call, number in NUMBERS[name].items()}
    return assemble(
        LoadWord(
            ARCHITECTURE,
            one_of((_AUDIT_ARCHES[name],), LoadWord(NUMBER, by_range(_ranges(decisions))), _KILL),
        )
    )


def _ranges(decisions: dict[int, Decision]) -> list[tuple[int, Decision]]:
    """Return where what is decided changes, from number to number: consecutive calls that are alike are one range."""
    beyond = {max(decisions) + 1: _ENOSYS, _X32_BIT: _KILL, _NO_CALL: _ENOSYS}
    listed = [(number, decisions.get(number, _ENOSYS)) for number in range(max(decisions) + 1)]
    starts: list[tuple[int, Decision]] = []
    for number, decision in [*listed, *beyond.items()]:
        if not starts or starts[-1][1] != decision:
            starts.append((number, decision))
    return starts


class _Program(ctypes.Structure):
    """A struct sock_fprog: how many instructions, and where."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
"""Every thread of the process, or none."""
_INSTRUCTION_BYTES: Final = 8


def install(program: bytes) -> None:
    """Put the whole process, all its threads and what it starts from now on, under a filter.

    Nothing takes it off again. A further filter may be added; of two answers the kernel takes the stricter one.

    Raises: OSError, saying what failed; then no thread is under the filter. SandboxUnavailable where there is no table
        for this machine.
    """
    system.give_up_privileges()
    instructions = ctypes.create_string_buffer(program, len(program))
    record = _Program(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions))
    thread = system.call("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, record)
    if thread != 0:
        raise OSError(f"seccomp: thread {thread} is under a filter that this one has not, so it cannot share this one")
