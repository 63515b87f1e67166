"""The agent's side of the self-test: run it once for this torch, these devices and this driver; remember a pass."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from pydantic import ValidationError

from farm_client.agent.errors import DeviceRefused
from farm_client.agent.machine.probe import Probe
from farm_client.executor.environment import executor_environment
from farm_client.sandbox.confinement import UNCONFINED, Confinement
from farm_client.sandbox.room import Room
from protocol.digests import digest_bytes
from protocol.frozen import Frozen
from protocol.resources import DeviceClass, Gpu

_LONGEST_SECONDS: Final = 180.0
_TURN_SECONDS: Final = 0.05
"""How often an agent looks whether another one's test has ended."""
_MODULE: Final = "farm_client.executor.selftest"


class DeviceVerdict(Frozen):
    """One device: an empty ``reason`` means that it computes rightly; ``gflops`` is its float32 matrix rate."""

    device: str
    name: str
    device_class: DeviceClass
    memory_bytes: int = 0
    reason: str = ""
    gflops: float = 0.0


class Verdicts(Frozen):
    """The outcome of a self-test. ``key`` names the torch, devices and driver that it holds for."""

    torch_version: str
    devices: tuple[DeviceVerdict, ...]
    key: str = ""

    @property
    def passed(self) -> tuple[DeviceVerdict, ...]:
        """The devices that compute rightly."""
        return tuple(verdict for verdict in self.devices if not verdict.reason)

    @property
    def refused(self) -> tuple[DeviceVerdict, ...]:
        """The devices that do not."""
        return tuple(verdict for verdict in self.devices if verdict.reason)

    @property
    def gpu_indices(self) -> frozenset[int]:
        """NVIDIA's accelerators that passed, in torch's numbering."""
        return frozenset(
            int(verdict.device.partition(":")[2]) for verdict in self.passed if verdict.device_class is DeviceClass.CUDA
        )

    @property
    def others(self) -> tuple[tuple[Gpu, ...], DeviceClass]:
        """The accelerators that passed and are not NVIDIA's, all of one class, and that class."""
        found = [one for one in self.passed if one.device_class not in (DeviceClass.CPU, DeviceClass.CUDA)]
        device_class = found[0].device_class if found else DeviceClass.CPU
        gpus = [
            Gpu(
                index=_index(one),
                name=one.name,
                memory_bytes=one.memory_bytes,
                memory_free_bytes=one.memory_bytes,
            )
            for one in found
            if one.device_class is device_class
        ]
        return tuple(gpus), device_class

    @property
    def bench_gflops(self) -> float:
        """The rate of the best device that passed."""
        return max((verdict.gflops for verdict in self.passed), default=0.0)


def _index(verdict: DeviceVerdict) -> int:
    """Return a device's number among those of its kind; there is one ``mps``."""
    return int(verdict.device.partition(":")[2] or 0)


async def self_test(
    probe: Probe, remembered: Path, command: tuple[str, ...] = (), confinement: Confinement = UNCONFINED
) -> Verdicts:
    """Return this machine's verdicts, from the file ``remembered`` if nothing has changed since.

    It is run in the tasks' sandbox; with accelerators at each start, because what they need there can be gone: device
    nodes that were not made yet, a driver's helper that can't run inside. ``command`` is run in its place.
    Only a pass of every device is remembered: one that was refused is tested anew at each start.
    Raises: DeviceRefused if no device is left, or the test could not be run.
    """
    key = _key(probe)
    async with _turn(remembered):
        known = _read(remembered)
        if known is not None and known.key == key and not confinement.policy.view.devices:
            return known
        verdicts = (await _run(probe.cpu_cores, command, remembered.parent, confinement)).model_copy(
            update={"key": key}
        )
        if not verdicts.passed:
            reasons = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts.refused)
            raise DeviceRefused(f"this machine cannot join, because its results would be wrong ({reasons})")
        if not verdicts.refused:
            _remember(remembered, verdicts)
        return verdicts


@asynccontextmanager
async def _turn(remembered: Path) -> AsyncIterator[None]:
    """Let agents that share the file test one after the other: a pass of the first spares the others theirs."""
    lock = FileLock(remembered.with_suffix(".lock"), timeout=0)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            await asyncio.sleep(_TURN_SECONDS)
        except OSError:  # a disk that takes no lock: two tests at once are slower, not wrong
            break
    try:
        yield
    finally:
        lock.release()


async def _run(cpu_cores: int, command: tuple[str, ...], folder: Path, confinement: Confinement) -> Verdicts:
    with _scratch(folder) as scratch:
        room = Room.make(Path(scratch))
        child = await asyncio.create_subprocess_exec(
            *(command or confinement.command(room, _MODULE)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=room.scratch,
            env=executor_environment(room.scratch, cpu_cores),
        )
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                output, complaints = await child.communicate()
        except TimeoutError:
            raise DeviceRefused(
                f"the self-test did not end within {_LONGEST_SECONDS:.0f} s; restart and retry"
            ) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    return _parse(child.returncode, output, complaints)


def _scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder inside the client's own, where an agent that is killed leaves it; elsewhere if there is no room.

    Raises: DeviceRefused if there is room nowhere.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="self-test-", dir=folder)
    except OSError:
        try:
            return tempfile.TemporaryDirectory(prefix="aifarm-self-test-")
        except OSError as error:
            raise DeviceRefused(f"the self-test has no folder to work in ({error.strerror}); make some room") from error


def _parse(exit_code: int | None, output: bytes, complaints: bytes) -> Verdicts:
    try:
        return Verdicts.model_validate_json(output)
    except ValidationError:
        last_lines = complaints.decode(errors="replace").strip().splitlines()[-1:]
        why = last_lines[0] if last_lines else f"exit code {exit_code}"
        raise DeviceRefused(
            f"the self-test could not run ({why}); is torch installed? pip install 'aifarm[client]'"
        ) from None


def _key(probe: Probe) -> str:
    """Name what the verdict depends on, without importing torch."""
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = "none"
    gpus = ",".join(gpu.name for gpu in probe.accelerators.sample())
    processor = f"{platform.machine()}/{_cpu_model()}/{os.cpu_count()}"
    return digest_bytes("|".join((torch_version, processor, gpus, probe.accelerators.driver)).encode())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _remember(remembered: Path, verdicts: Verdicts) -> None:
    with suppress(OSError):  # without it the next start tests again
        remembered.write_text(verdicts.model_dump_json())


def _read(remembered: Path) -> Verdicts | None:
    try:
        return Verdicts.model_validate_json(remembered.read_bytes())
    except (OSError, ValidationError):  # never tested, or a file of another version: test
        return None
