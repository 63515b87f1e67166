"""Rank 0's side of the other processes of its executor: starts them, passes orders on, and ends with any of them.

They are its children, in its sandbox and its process group, so what ends the one ends all. Rank 0 alone speaks with the
agent. A thread for each rank listens, reports what it says last, and ends the whole executor, whatever the main thread
does: the agent starts another one.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import farm_client
import protocol
from farm_client.executor.channel import FD_VARIABLE
from farm_client.executor.failures import as_failed
from farm_client.executor.messages import REPORT, Failed, Loaded, LoadTask, Order, Run
from farm_client.executor.rank_links import Hub, RankLost, pair
from farm_client.executor.ranks import Ranks
from protocol.errors import ProtocolError
from protocol.framing import FrameDecoder, pack_frame

PROCESSES_VARIABLE: Final = "AIFARM_PROCESSES"
RANK_VARIABLE: Final = "AIFARM_RANK"
LINK_VARIABLE: Final = "AIFARM_RANK_FD"
FOLLOWER_MODULE: Final = "farm_client.executor.follower"
RANK_LOST: Final = 70
"""The exit code of an executor one of whose ranks has ended: EX_SOFTWARE of sysexits.h."""
_RUN: Final = """
import importlib.util, runpy, sys
for name, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
"""As ``python -m``, told where the farm's packages are. Beside Landlock a process can't list the folder above them in a
development tree, and would not find them; rank 0 did before it was confined."""
_READ_BYTES: Final = 1 << 16
_LAST_WORD_SECONDS: Final = 30.0


class Followers:
    """The ranks from 1 on."""

    def __init__(self, size: int, report: Callable[[Failed], None], module: str = FOLLOWER_MODULE) -> None:
        """Start them. ``size`` counts rank 0, ``report`` speaks to the agent. Raises: OSError."""
        self.size = size
        self._report = report
        self._module = module
        self._assignment_id: str | None = None
        self._load: LoadTask | None = None
        self._followers: list[_Follower] = []
        self._gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if self._gpus:  # before torch asks for the devices
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(self._gpus, 0)
        self._start()

    @classmethod
    def from_environment(cls, report: Callable[[Failed], None]) -> Followers | None:
        """Start as many as the agent wants; None if it wants one process alone. Raises: OSError."""
        size = int(os.environ.pop(PROCESSES_VARIABLE, "1"))
        return cls(size, report) if size > 1 else None

    def load(self, order: LoadTask) -> None:
        """Have them load the task as well. They read snapshots, and write none."""
        self._load = order.model_copy(update={"snapshot_seconds": math.inf if order.snapshot_seconds else 0.0})
        self._send(self._load)

    def run(self, order: Run) -> None:
        """Have them follow an assignment."""
        self._assignment_id = order.assignment_id
        self._send(order.model_copy(update={"failed_step_bytes": 0, "upcoming": ()}))

    def meet(self) -> Ranks:
        """Wait until they have loaded the task, and return this process's place."""
        for follower in self._followers:
            follower.loaded.wait()
        return self.ranks()

    def ranks(self) -> Ranks:
        """Return this process's place among those that live now."""
        return Ranks(0, self.size, Hub([follower.link for follower in self._followers], self._hear_end))

    def restart(self) -> None:
        """Put others in their place, who wait for nobody, and have them load the task. Raises: OSError."""
        self.end()
        self._start()
        if self._load is not None:
            self._send(self._load)

    def end(self) -> None:
        """End them."""
        for follower in self._followers:
            follower.end()
        self._followers = []

    def _start(self) -> None:
        for rank in range(1, self.size):
            variables = {
                PROCESSES_VARIABLE: str(self.size),
                RANK_VARIABLE: str(rank),
                "CUDA_VISIBLE_DEVICES": gpu_of(self._gpus, rank),
            }
            self._followers.append(_Follower(self._module, rank, variables, self._lost))

    def _hear_end(self) -> None:
        """Wait for what the thread of one that has ended will say, which ends this process."""
        for follower in self._followers:
            follower.hear_end()

    def _send(self, order: Order) -> None:
        for follower in self._followers:
            follower.send(order)

    def _lost(self, rank: int, exit_code: int, last: Failed | None) -> None:
        """Say why, and end this process, wherever its main thread is."""
        lost = RankLost(f"process {rank} of this executor's {self.size}, from 0, ended {_how(exit_code)}")
        failed = as_failed(lost, self._assignment_id) if last is None else last
        sys.stderr.write(f"{failed.message}\n")
        with suppress(OSError):
            self._report(failed.model_copy(update={"assignment_id": self._assignment_id}))
        sys.stderr.flush()
        os._exit(RANK_LOST)


class _Follower:
    """One of them, and the thread that listens to it."""

    def __init__(
        self, module: str, rank: int, variables: dict[str, str], lost: Callable[[int, int, Failed | None], None]
    ) -> None:
        self._rank = rank
        self._lost = lost
        self._is_ended = False
        self.loaded = threading.Event()
        """Set once it has loaded the task and goes to meet the others."""
        self._connection, theirs = socket.socketpair()
        self.link, their_link = pair()
        """For what all ranks add up."""
        with theirs, their_link:
            passed = {FD_VARIABLE: str(theirs.fileno()), LINK_VARIABLE: str(their_link.fileno())}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _RUN, module, *_own_packages()],
                env={**os.environ, **variables, **passed},
                pass_fds=(theirs.fileno(), their_link.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # rank 0 prints the same
            )
        self._listening = threading.Thread(target=self._listen, name=f"rank-{rank}", daemon=True)
        self._listening.start()

    def send(self, order: Order) -> None:
        """Write an order; that it is gone is heard by the thread."""
        with suppress(OSError):
            self._connection.sendall(pack_frame(order.model_dump()))

    def end(self) -> None:
        """Kill it."""
        self._is_ended = True
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self.link.close()

    def hear_end(self) -> None:
        """Wait while its thread reports its end, if it has ended."""
        self._listening.join(_LAST_WORD_SECONDS)

    def _listen(self) -> None:
        decoder, last = FrameDecoder(), None
        with suppress(OSError, ProtocolError, ValueError):
            while data := self._connection.recv(_READ_BYTES):
                for frame in decoder.feed(data):
                    report = REPORT.validate_python(frame)
                    last = report if isinstance(report, Failed) else last
                    if isinstance(report, Loaded):
                        self.loaded.set()
        exit_code = self._process.wait()
        if not self._is_ended:
            self._lost(self._rank, exit_code, last)


def _own_packages() -> list[str]:
    return [text for package in (farm_client, protocol) for text in (package.__name__, *package.__path__)]


def gpu_of(gpus: list[str], rank: int) -> str:
    """Return what a rank's CUDA_VISIBLE_DEVICES is: one of the executor's GPUs, or none where there are none."""
    return gpus[rank % len(gpus)] if gpus else ""


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    try:
        return f"by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"by signal {-exit_code}"
