"""The agent's side of one executor process: starts it, sends orders, reads reports and output, ends it.

The executor runs a stranger's code, so it is confined (``farm_client.sandbox``) unless the owner said otherwise; each
report that it sends is checked; what all its processes use together is measured, and what goes over a bound is ended.
It gets an environment from an allow-list, folders of its own that are deleted with it, lower priority, and it dies with
the agent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Final, Literal, cast

from pydantic import ValidationError

from farm_client.executor.environment import executor_environment
from farm_client.executor.messages import REPORT, Order, Report
from farm_client.executor.output import LineSplitter
from farm_client.executor.postmortem import ProcessDeath, explain_death, oom_kills
from farm_client.sandbox.cgroups import Delegation, ExecutorGroup
from farm_client.sandbox.confinement import UNCONFINED, Confinement
from farm_client.sandbox.ending import end_all
from farm_client.sandbox.halting import go_on, halt, keep_to_cores
from farm_client.sandbox.policy import Caps
from farm_client.sandbox.quick_probes import tried_first
from farm_client.sandbox.room import Room
from farm_client.sandbox.watch import Excess, excess, resident_bytes, scratch_excess
from protocol.errors import MalformedFrame, ProtocolError
from protocol.framing import FrameDecoder, pack_frame
from protocol.sandbox import Rung

EXECUTOR_MODULE: Final = "farm_client.executor"
FD_VARIABLE: Final = "AIFARM_EXECUTOR_FD"
VRAM_VARIABLE: Final = "AIFARM_VRAM_SHARE"
PROCESSES_VARIABLE: Final = "AIFARM_PROCESSES"
SHARD_VARIABLE: Final = "AIFARM_SHARD"
_SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""A frame of weights passes in few wake-ups."""
_READ_BYTES: Final = 64 * 1024
_READS_PER_WAKE: Final = 8
"""An executor that prints without end must not keep the event loop from its other work."""

_CLOSING_SECONDS: Final = 5.0
"""A process that ends closes its connection first; one that lives on for so long after it closed it on purpose."""

_MEASURE_SECONDS: Final = 0.5
_SCRATCH_TURNS: Final = 6
"""A folder takes longer to measure than processes: but for a new bound, it is measured less often."""

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class ExecutorListener:
    """Callbacks for an executor's reports, output and death. Called on the event loop; none may block or raise."""

    on_report: Callable[[Report], None]
    on_line: Callable[[Stream, str], None]
    on_death: Callable[[ProcessDeath], None]


class ExecutorProcess(asyncio.Protocol):
    """One living executor. Made by ``start_executor``; ended by ``kill`` or by itself, which the listener hears."""

    def __init__(self, room: Room, launch: Launch, listener: ExecutorListener) -> None:
        self.room = room
        self._confinement = launch.confinement
        self._caps = launch.caps
        self.group: ExecutorGroup | None = None
        """Its control group, where the system gives it one."""
        self._listener = listener
        self._decoder = FrameDecoder()
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._outputs: dict[int, tuple[Stream, LineSplitter]] = {}
        self._killed = False
        self._is_ending = False
        self._broke_protocol: str | None = None
        self._excess: Excess | None = None
        self._oom_kills_before = oom_kills()

    @property
    def pid(self) -> int:
        """The process's id, which is also its group's and its session's."""
        assert self._process is not None  # noqa: S101  set before anyone holds this object
        return self._process.pid

    def memory_bytes(self) -> int:
        """Measure the memory that its processes hold; 0 if they are gone."""
        return resident_bytes(self.pid)

    def send(self, order: Order) -> None:
        """Write one order. A dead executor's death is heard through the listener, not here."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack_frame(order.model_dump()))

    def read_output(self) -> None:
        """Take now all that the executor printed so far: what it printed before a report comes before the report."""
        for descriptor in tuple(self._outputs):
            self._read_pipe(descriptor)

    def halt(self) -> None:
        """Stop its processes for a moment, unless it is at its last work."""
        if self._lives and not self._is_ending:
            halt(self.pid, supervised=self._confinement.rung is not Rung.NONE)

    def go_on(self) -> None:
        """Let its processes go on."""
        if self._lives:
            go_on(self.pid, supervised=self._confinement.rung is not Rung.NONE)

    def let_end(self) -> None:
        """Let its processes go on, and halt them no more: it keeps what it did, and is to be killed soon."""
        self._is_ending = True
        self.go_on()

    def keep_to_cores(self, cores: frozenset[int]) -> None:
        """Let all its threads run on these cores alone."""
        if self._lives:
            keep_to_cores(self.pid, cores)

    @property
    def _lives(self) -> bool:
        """Whether its id is its own: that of a process that has ended may be another one's."""
        return self._process is not None and self._process.returncode is None

    def kill(self) -> None:
        """Kill the executor and all of its group at once, in mid-step; its death is not reported."""
        self._killed = True
        end_all(self.pid)

    async def closed(self) -> None:
        """Wait until the process is gone and its scratch folder with it."""
        if self._watch is not None:
            await asyncio.shield(self._watch)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the executor (asyncio calls this)."""
        # A stream's transport writes; uvloop's does so without being a subclass of asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End a process soon whose socket has closed (asyncio calls this)."""
        asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self._end_if_mute)

    def _end_if_mute(self) -> None:
        if self._process is not None and self._process.returncode is None and not self._killed:
            self._stop("it closed its connection to the agent")

    def data_received(self, data: bytes) -> None:
        """Take reports (asyncio calls this). The executor runs strangers' code, so each report is checked."""
        try:
            frames = self._decoder.feed(data)
            reports = [REPORT.validate_python(frame) for frame in frames]
        except (ProtocolError, ValidationError) as error:
            self._refuse(error)
            return
        for report in reports:
            if report.type in ("steps_done", "done", "failed"):
                self.read_output()
            self._listener.on_report(report)

    def _refuse(self, error: ProtocolError | ValidationError) -> None:
        reason = error.message if isinstance(error, ProtocolError) else MalformedFrame().message
        self._stop(f"it sent a report that cannot be read: {reason}")

    def _stop(self, why: str) -> None:
        self._broke_protocol = why
        end_all(self.pid)

    def adopt(self, process: asyncio.subprocess.Process, outputs: dict[Stream, int]) -> None:
        """Take charge of the started process and the reading ends of its output pipes."""
        self._process = process
        loop = asyncio.get_running_loop()
        for stream, descriptor in outputs.items():
            os.set_blocking(descriptor, False)
            self._outputs[descriptor] = (stream, LineSplitter())
            loop.add_reader(descriptor, self._read_pipe, descriptor)
        self._watch = loop.create_task(self._await_end(process))

    def _read_pipe(self, descriptor: int) -> None:
        stream, splitter = self._outputs[descriptor]
        try:
            for _ in range(_READS_PER_WAKE):
                data = os.read(descriptor, _READ_BYTES)
                for line in splitter.feed(data):
                    self._listener.on_line(stream, line)
                if 0 < len(data) < _READ_BYTES:
                    return
                if not data:
                    self._close_pipe(descriptor)
                    return
        except BlockingIOError:
            return

    def _close_pipe(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        stream, splitter = self._outputs.pop(descriptor)
        os.close(descriptor)
        for line in splitter.finish():
            self._listener.on_line(stream, line)

    async def _keep_within_bounds(self) -> None:
        """End it when all its processes together go over a bound."""
        held_to = self._caps.within(self._confinement.policy.bounds).scratch_bytes
        for turn in count(1):
            await asyncio.sleep(_MEASURE_SECONDS)
            bounds = self._caps.within(self._confinement.policy.bounds)
            if self.group is not None:
                self.group.keep_within(bounds, self._caps.cpu_cores)
            self._excess = excess(self.pid, bounds)
            if self._excess is None and (turn % _SCRATCH_TURNS == 0 or bounds.scratch_bytes != held_to):
                held_to = bounds.scratch_bytes
                self._excess = await asyncio.to_thread(scratch_excess, self.room.scratch, bounds, self.pid)
            if self._excess is not None:
                end_all(self.pid)
                return

    async def _await_end(self, process: asyncio.subprocess.Process) -> None:
        keeping = asyncio.get_running_loop().create_task(self._keep_within_bounds())
        exit_code = self._confinement.own_exit_code(await process.wait())
        keeping.cancel()
        with suppress(ProcessLookupError):  # what the executor started in its group goes with it
            os.killpg(process.pid, signal.SIGKILL)
        self.read_output()
        for descriptor in tuple(self._outputs):
            self._close_pipe(descriptor)
        if self._transport is not None:
            self._transport.close()
        if self.group is not None:
            self._excess = self._excess or self.group.excess()
            await asyncio.to_thread(self.group.remove)
        await asyncio.to_thread(self.room.remove)
        if not self._killed:
            ran_out_of_memory = oom_kills() > self._oom_kills_before
            self._listener.on_death(explain_death(exit_code, ran_out_of_memory, self._broke_protocol, self._excess))


@dataclass(frozen=True, slots=True)
class Launch:
    """How executors are started. ``cpu_cores`` bounds the threads of each; ``gpus`` is its CUDA_VISIBLE_DEVICES.

    That is AMD's variable, too; Intel's is ZE_AFFINITY_MASK.

    ``vram_share``: how much of each GPU's memory one may take, over 0 to 1; None for all.
    """

    scratch_root: Path
    cpu_cores: int
    gpus: str = ""
    vram_share: float | None = None
    processes: int | Literal["gpus"] = 1
    """How many share out an executor's assignments, at most one for each GPU; ``gpus``: as many as those."""
    shard: Literal["auto", "always", "never"] = "auto"
    """When they hold a model in parts; ``auto``: one that is too large for a device."""
    module: str = EXECUTOR_MODULE
    confinement: Confinement = UNCONFINED
    cgroups: Delegation | None = None
    caps: Caps = field(default_factory=Caps)
    """What is measured beside the confinement's own bounds; it may change while executors live."""

    def reading(self, folder: Path) -> Launch:
        """Return the same for executors that also see a folder."""
        return replace(self, confinement=self.confinement.reading(folder))

    @property
    def ranks(self) -> int:
        """Return how many processes each executor is now."""
        gpus = len([name for name in self.gpus.split(",") if name])
        if self.processes == "gpus":
            return max(gpus, 1)
        return min(self.processes, gpus or self.processes)

    def environment(self, scratch_dir: Path, descriptor: int) -> dict[str, str]:
        """Return the whole environment of one executor."""
        own = {FD_VARIABLE: str(descriptor), "CUDA_VISIBLE_DEVICES": self.gpus, "ZE_AFFINITY_MASK": self.gpus}
        if self.vram_share is not None:
            own[VRAM_VARIABLE] = str(self.vram_share)
        if self.ranks > 1:
            own |= {PROCESSES_VARIABLE: str(self.ranks), SHARD_VARIABLE: self.shard}
        return executor_environment(scratch_dir, max(1, self.cpu_cores // self.ranks)) | own


async def start_executor(launch: Launch, listener: ExecutorListener) -> ExecutorProcess:
    """Start an executor with folders of its own; it reports Warm when it is ready.

    Raises: OSError if no process can be started.
    """
    room = Room.make(launch.scratch_root)
    executor = ExecutorProcess(room, launch, listener)
    executor.group = _group_of(launch)
    ours, theirs = socket.socketpair()
    pipes: dict[Stream, tuple[int, int]] = {"stdout": os.pipe(), "stderr": os.pipe()}
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    module, arguments = tried_first(launch.confinement, room, launch.module)
    command = launch.confinement.command(room, module, arguments, keep=(theirs.fileno(),))
    try:
        process = await asyncio.create_subprocess_exec(
            *(command if executor.group is None else executor.group.command(command)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipes["stdout"][1],
            stderr=pipes["stderr"][1],
            cwd=room.scratch,
            env=launch.environment(room.scratch, theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        for reading, _ in pipes.values():
            os.close(reading)
        room.remove()
        if executor.group is not None:
            executor.group.remove()
        raise
    finally:
        theirs.close()
        for _, writing in pipes.values():
            os.close(writing)
    executor.adopt(process, {stream: reading for stream, (reading, _) in pipes.items()})
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: executor, sock=ours)
    except BaseException:
        executor.kill()
        raise
    return executor


def _group_of(launch: Launch) -> ExecutorGroup | None:
    """Make an executor's control group; without one its bounds are limits and measurements."""
    if launch.cgroups is None:
        return None
    with suppress(OSError):
        return launch.cgroups.make(launch.caps.within(launch.confinement.policy.bounds), launch.caps.cpu_cores)
    return None
