"""Tries at the start of each executor, in its own process, whether its sandbox holds; then becomes the executor.

    python -P -m farm_client.sandbox.quick_probes TARGETS NETWORK PROCESSES MODULE

Between the agent's start, when ``prove`` tried the rung as a whole, and an executor's, days may lie, and a change of
the kernel's settings. These are the probes that take no decoys and no time, and do no harm. They run before torch is
imported, and before anything of a task is there. They fail closed. NETWORK and PROCESSES are the numbers of the agent's
namespaces for these.
"""

from __future__ import annotations

import ctypes
import errno
import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm_client.sandbox.lifeline import NOT_CONFINED
from farm_client.sandbox.probes import PROBES, Probe
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.targets import Targets
from farm_client.sandbox.words import from_words, in_words

if TYPE_CHECKING:
    from farm_client.sandbox.confinement import Confinement
    from farm_client.sandbox.room import Room

_MODULE: Final = "farm_client.sandbox.quick_probes"
_PEEK: Final = 1
_REFUSED: Final = frozenset({errno.EPERM, errno.ENOSYS})


def tried_first(confinement: Confinement, room: Room, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the module to run in a room, and its arguments, so that the sandbox is tried before ``module`` runs.

    Where there is none that is the module itself.
    """
    from protocol.sandbox import Rung  # noqa: PLC0415 - pydantic would take longer than all that is done inside

    if confinement.rung is Rung.NONE:
        return module, ()
    policy = confinement.policy
    secret = next((path for folder in policy.secrets for path in sorted(folder.iterdir()) if path.is_file()), "")
    targets = Targets(
        secret_file=str(secret),
        secret_folders=tuple(str(path) for path in (Path.home(), *policy.secrets)),
        visible=tuple(str(path) for path in (*policy.view.read_only, room.given)),
        scratch=str(room.scratch),
        decoy_pid=os.getpid(),
        skipped=tuple(sorted(confinement.not_claimed)),
    )
    return _MODULE, (in_words(targets), str(_number_of("net")), str(_number_of("pid")), module)


def _number_of(namespace: str) -> int:
    """Return the number of a namespace of this process."""
    return os.stat(f"/proc/self/ns/{namespace}").st_ino  # noqa: PTH116  without pathlib's cost


def _network(network: int) -> Iterator[str]:
    """A socket is nothing as long as it belongs to a network of its own, which has no way out."""
    try:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return
    with udp:
        if _number_of("net") == network:
            yield "open a socket in the machine's own network, loopback included"
        with suppress(OSError):
            udp.connect(("192.0.2.1", 9))  # a test network: this sends nothing, and succeeds where there is a route
            yield "find a route out of this machine"


def _agent(pid: int, processes: int) -> Iterator[str]:
    """In a namespace of its own for process ids the agent has none, and its number may be another's."""
    if _number_of("pid") == processes:
        with suppress(OSError):
            os.kill(pid, 0)
            yield "signal the agent"
        with suppress(OSError):
            os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY))
            yield "read the agent's variables"


def _system_calls() -> Iterator[str]:
    """Each does nothing on an open kernel but to give another error than the filter does."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls: Mapping[str, Callable[[], int]] = {
        "ptrace": lambda: libc.ptrace(_PEEK, 0, 0, 0),
        "mount": lambda: libc.mount(None, None, None, 0, None),
        "unshare": lambda: libc.unshare(0),
    }
    for name, call in calls.items():
        ctypes.set_errno(0)
        if call() != -1 or ctypes.get_errno() not in _REFUSED:
            yield f"call {name}"


def first_breach(targets: Targets, network: int, processes: int) -> str | None:
    """Try what is not skipped, and say in a line what got out first; None if nothing did."""
    quick: Mapping[Protection, Probe] = {
        **{protection: PROBES[protection] for protection in _WHOLE},
        Protection.NETWORK: lambda _targets: _network(network),
        Protection.PROCESSES: lambda targets: _agent(targets.decoy_pid, processes),
        Protection.SYSTEM_CALLS: lambda _targets: _system_calls(),
    }
    for protection, probe in quick.items():
        if protection not in targets.skipped:
            for what in probe(targets):
                return f"the sandbox does not hold: the probe of {protection} could {what}"
    return None


_WHOLE: Final = (Protection.FILES, Protection.READ_ONLY, Protection.CAPABILITIES)
"""The probes of the agent's start that are quick as they are."""


def main() -> None:
    """Probe, then become the module that is named on the command line."""
    words, network, processes, module, *arguments = sys.argv[1:]
    try:
        breach = first_breach(from_words(Targets, words), int(network), int(processes))
    except Exception as error:  # whatever it is: nothing shows that the sandbox holds
        breach = f"the sandbox could not be tried: {error!r}"
    if breach is not None:
        sys.stderr.write(f"{breach}\n")
        sys.exit(NOT_CONFINED)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
