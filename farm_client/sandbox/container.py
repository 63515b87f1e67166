"""Keeps one rootless container: starts it, ends with its exit code, and leaves nothing of it behind, however it ends.

    python -P -m farm_client.sandbox.container AGENT_PID RUN

RUN is ``ContainerRun`` in words. Podman leaves a container to a monitor, which would outlive the agent, and to a
process that holds its namespaces. So there are two processes here. The one that the agent starts waits, and ends with
the agent, or by it. The keeper, its child, starts Podman, takes in all that loses its parent under it, and has a
lifeline to the container's first process (``first.py``). When its parent ends, whichever way, the keeper ends
everything under it. Until then it holds the room, which ``Room.remove`` waits for.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from farm_client.sandbox.lifeline import NOT_CONFINED, die_with
from farm_client.sandbox.podman import ContainerRun, lifeline_number
from farm_client.sandbox.room import HOLD
from farm_client.sandbox.watch import tree
from farm_client.sandbox.words import from_words

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_STDERR: Final = 2
_MOST_DESCRIPTORS: Final = 65536
_CUT: Final = 128 + signal.SIGKILL
"""The exit code of a container that ended without a word."""
_MOST_CODE_BYTES: Final = 16
_ROOT: Final = "this agent is root's, and what holds is a rootless container: run the agent as an ordinary user"


def main() -> NoReturn:
    """Run the container that the command line names, and end with its exit code."""
    agent_pid, run = int(sys.argv[1]), from_words(ContainerRun, sys.argv[2])
    die_with(agent_pid)
    if os.geteuid() == 0:
        sys.stderr.write(f"{_ROOT}\n")
        sys.exit(NOT_CONFINED)
    hold = _hold(Path(run.folder).parent, lifeline_number(run.keep))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    waiting = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        os.setsid()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # a signal that wakes this process, too: the agent halts all of an executor at times, and may end meanwhile
        signal.signal(signal.SIGCONT, lambda *_: _leave(run) if os.getppid() != waiting else None)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
        if os.getppid() != waiting:
            os._exit(_CUT)
        sys.exit(_keep(run))
    os.closerange(_STDERR + 1, hold)  # the task's socket: the agent must hear when the task closes it
    os.closerange(hold + 1, _MOST_DESCRIPTORS)
    code = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
    end_descendants()  # there are some left if the keeper was killed
    sys.exit(code if code >= 0 else _CUT)


def _keep(run: ContainerRun) -> int:
    """Start the container and wait for its end; return its exit code."""
    try:
        lifeline = _start(run)
        return _CUT if lifeline is None else int(lifeline.recv(_MOST_CODE_BYTES) or _CUT)
    except OSError as error:
        sys.stderr.write(f"the container could not be started: {error}\n")
        return NOT_CONFINED
    finally:
        _clear(run)


def _leave(run: ContainerRun) -> NoReturn:
    """End at once, wherever this process is: its parent is gone."""
    signal.signal(signal.SIGCONT, signal.SIG_IGN)
    _clear(run)
    os._exit(_CUT)


def _clear(run: ContainerRun) -> None:
    end_descendants()
    shutil.rmtree(run.folder, ignore_errors=True)


def _hold(room: Path, number: int) -> int:
    """Hold a room until this process and its children have ended; return the descriptor, which is over ``number``."""
    opened = os.open(room / HOLD, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    hold = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, number + 1)
    os.close(opened)
    fcntl.flock(hold, fcntl.LOCK_EX)
    return hold


def _start(run: ContainerRun) -> socket.socket:
    """Start the container; return this end of its lifeline. Raises: OSError; SystemExit where Podman says no."""
    number = lifeline_number(run.keep)
    ours, theirs = (_moved_beyond(end, number) for end in socket.socketpair())
    with theirs:
        os.dup2(theirs.fileno(), number)
    passed = range(_STDERR + 1, number + 1)
    for other in set(passed) - {*run.keep, number}:
        _fill(other)  # Podman passes all numbers up to the last
    process = subprocess.run(
        run.arguments(os.environ), env=run.prepare(), stdin=subprocess.DEVNULL, pass_fds=passed, check=False
    )
    os.closerange(passed.start, passed.stop)
    if process.returncode != 0:
        sys.exit(process.returncode)
    return ours


def _moved_beyond(end: socket.socket, number: int) -> socket.socket:
    """Return the socket under a descriptor that is over ``number``."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, number + 1))


def _fill(number: int) -> None:
    """Put nothing where a descriptor is not to be passed."""
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def end_descendants() -> None:
    """Kill all that descends from this process, and wait until it is gone; what is orphaned comes to this process."""
    own = os.getpid()
    with suppress(ChildProcessError):
        while True:
            for one in tree(own):
                if one != own:
                    with suppress(OSError):
                        os.kill(one, signal.SIGKILL)
            os.waitpid(-1, 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
