"""What a sandboxed process does to itself before anything of a task is there: limits, Landlock, the call filter.

It comes as one argument of the command line, in JSON: this runs before torch and pydantic are imported.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from farm_client.sandbox import first, landlock, seccomp
from farm_client.sandbox.errors import SandboxUnavailable

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
IN_NAMESPACES: Final = "in_namespaces"
ALONE: Final = "alone"
_STDERR: Final = 2
_MOST_DESCRIPTORS: Final = 65536
_LAST_CAPABILITY: Final = 63
_CAPABILITY_VERSION_3: Final = 0x20080522


@dataclass(frozen=True, slots=True)
class Inside:
    """All that is done by the process itself. The default closes what was inherited.

    ``limits``: the names of ``resource.RLIMIT_*`` and their value, soft and hard. ``filter``: the system-call filter
    for a process ``in_namespaces`` of its own, or for one ``alone``. ``read``, ``write`` and ``devices`` are Landlock's
    rules, with ``landlock``. ``supervised``: a parent process ends all of its session with it.
    """

    keep: tuple[int, ...] = ()
    """The descriptors that stay open beside stdin, stdout and stderr: whatever else was inherited is closed."""
    limits: Mapping[str, int] = field(default_factory=dict)
    filter: str = ""
    landlock: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    drop_capabilities: bool = False
    memory_files: bool = True
    """Whether files of memory may be made (``memfd_create``): the kernel counts them to no process."""
    supervised: bool = False
    lifeline: int = 0
    """In a container: the descriptor that its first process ends with, and tells the exit code through."""


def enter(inside: Inside) -> None:
    """Do all of it, in this process. Raises: SandboxUnavailable; the process must end then."""
    try:
        _close_all_but((*inside.keep, *((inside.lifeline,) if inside.lifeline else ())))
        if inside.supervised:
            _fork_under_supervision()
        if inside.lifeline:
            first.go_on_as_a_child(inside.lifeline)
        for name, value in inside.limits.items():
            _limit(name, value)
        if inside.drop_capabilities:
            _drop_capabilities()
        if inside.landlock:
            landlock.restrict(_rules(inside))
        if inside.filter:
            scoped = inside.landlock and landlock.abi() >= landlock.SCOPES_ABI
            program = seccomp.build_filter(
                platform.machine(),
                namespaces=inside.filter == IN_NAMESPACES,
                scoped_signals=scoped,
                memory_files=inside.memory_files,
            )
            seccomp.install(program)
    except OSError as error:
        raise SandboxUnavailable(f"this process could not be confined: {error}") from error


def _rules(inside: Inside) -> landlock.Rules:
    own = landlock.proc_rules(os.getpid())
    return landlock.Rules(
        read=(*map(Path, inside.read), *own.read),
        edit=own.edit,
        write=tuple(map(Path, inside.write)),
        devices=tuple(map(Path, inside.devices)),
    )


def _close_all_but(kept: Iterable[int]) -> None:
    first = _STDERR + 1
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, _MOST_DESCRIPTORS)


def _limit(name: str, value: int) -> None:
    import resource  # noqa: PLC0415 - Windows has none, and the agent reads this module there

    which: int = getattr(resource, f"RLIMIT_{name}")
    _soft, hard = resource.getrlimit(which)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (most, most))


def _fork_under_supervision() -> None:
    """Go on as a child; the parent waits, ends the whole session with it or with the agent, and takes its exit code.

    The parent is not confined, so nothing that the child starts can signal it. Whatever the child starts stays in its
    process group, which the filter of system calls sees to; and under this parent, which takes in what loses its own:
    else a task could put its processes where nobody measures them.
    """
    parent = os.getpid()
    _call_prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _call_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the supervisor is gone")
        return
    with suppress(OSError):  # the child may have done it already
        os.setpgid(child, child)

    def end(*_arguments: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    _call_prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, end)
    _close_all_but(())  # the child's socket: the agent must hear when the child closes it
    ended = 0
    while ended != child:
        with suppress(InterruptedError):
            ended, status = os.waitpid(-1, 0)
    end()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _drop_capabilities() -> None:
    """Give all capabilities up, for this process and for what it will execute."""
    for number in range(_LAST_CAPABILITY + 1):
        with suppress(OSError):  # this kernel has fewer, or the process holds none
            _call_prctl(_PR_CAPBSET_DROP, number)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))


def _call_prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): " + os.strerror(ctypes.get_errno()))
