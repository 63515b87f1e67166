"""NVIDIA accelerators through NVML, and others as torch's self-test finds them; a machine may simply have none."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from protocol.resources import DeviceClass, Gpu

_MILLI = 1000


class Accelerators:
    """The GPUs that this process may use, in the order in which torch will number them.

    NVML stays open for the agent's life, so that a load sample takes under a millisecond. ``driver`` is its version,
    empty without one.
    """

    def __init__(self) -> None:
        self.driver = ""
        self._handles: dict[int, object] = {}
        self._others: dict[int, Gpu] = {}
        self._class_of_others = DeviceClass.CPU
        self._granted: frozenset[int] | None = None
        self._nvml = nvml_binding()
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:  # no driver, or no device
            return
        self.driver = _text(self._nvml.nvmlSystemGetDriverVersion())
        for index in _visible(self._nvml.nvmlDeviceGetCount()):
            self._handles[index] = self._nvml.nvmlDeviceGetHandleByIndex(index)

    def keep_only(self, positions: Collection[int]) -> None:
        """Leave out all GPUs but those at these positions, for good: the others passed no self-test."""
        self._handles = {index: handle for at, (index, handle) in enumerate(self._lent.items()) if at in positions}

    def adopt(self, others: Collection[Gpu], device_class: DeviceClass) -> None:
        """Lend GPUs of another class, which passed the self-test: NVML knows nothing of them, and nobody how busy."""
        self._others = {gpu.index: gpu for gpu in others}
        self._class_of_others = device_class

    def grant(self, indices: Collection[int] | None) -> None:
        """Use the GPUs of these indices from now on, of those that are not left out; None: all of them."""
        self._granted = None if indices is None else frozenset(indices)

    @property
    def _lent(self) -> dict[int, object]:
        """The GPUs in use."""
        granted = self._granted
        return {index: handle for index, handle in self._handles.items() if granted is None or index in granted}

    @property
    def _lent_others(self) -> tuple[Gpu, ...]:
        """Those of another class in use; where NVIDIA's are, torch can't use others."""
        granted = self._granted
        found = () if self._handles else tuple(self._others.values())
        return tuple(gpu for gpu in found if granted is None or gpu.index in granted)

    @property
    def device_class(self) -> DeviceClass:
        """What tasks compute on here."""
        if self._lent:
            return DeviceClass.CUDA
        return self._class_of_others if self._lent_others else DeviceClass.CPU

    @property
    def visible(self) -> str:
        """The GPUs in use, as ``CUDA_VISIBLE_DEVICES`` has them."""
        return ",".join(map(str, (*self._lent, *(gpu.index for gpu in self._lent_others))))

    @property
    def device_nodes(self) -> tuple[Path, ...]:
        """The device nodes that a sandbox must have for the GPUs in use; none without one."""
        lent = self._lent
        if lent:
            return device_nodes([_minor(self._nvml, handle) for handle in lent.values()])
        return () if self._handles or self._granted == frozenset() else render_nodes(torch_build())

    def sample(self) -> tuple[Gpu, ...]:
        """Read every GPU's memory and load; one that fell off the bus is left out."""
        found = []
        for index, handle in self._lent.items():
            with suppress(self._nvml.NVMLError):
                found.append(_sample(self._nvml, index, handle))
        return (*found, *self._lent_others)

    def temperatures(self) -> dict[int, float]:
        """Read the GPUs' temperatures in degrees Celsius, by index; one that does not tell is left out."""
        found = {}
        for index, handle in self._lent.items():
            with suppress(self._nvml.NVMLError):
                found[index] = float(self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU))
        return found

    def power_limits(self) -> dict[int, float]:
        """Read the GPUs' power limits in watts, by index; one that has none is left out."""
        found = {}
        for index, handle in self._lent.items():
            with suppress(self._nvml.NVMLError):
                found[index] = self._nvml.nvmlDeviceGetPowerManagementLimit(handle) / _MILLI
        return found

    def limit_power(self, index: int, watts: float) -> bool:
        """Set a GPU's power limit, as near as it takes; return whether that was permitted (it takes root)."""
        if (handle := self._handles.get(index)) is None:
            return False
        try:
            least, most = self._nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            self._nvml.nvmlDeviceSetPowerManagementLimit(handle, int(min(max(watts * _MILLI, least), most)))
        except self._nvml.NVMLError:
            return False
        return True

    def close(self) -> None:
        """Let NVML go."""
        if self.driver:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._handles, self.driver = {}, ""


def torch_build() -> str:
    """Return what the installed torch was built for, as its version says after a plus; empty where it says nothing."""
    try:
        return importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        return ""


def render_nodes(build: str, dev: Path = Path("/dev")) -> tuple[Path, ...]:
    """List the nodes of AMD's cards, or of Intel's, where torch is built for them; none where it is not."""
    if not build.startswith(("rocm", "xpu")):
        return ()
    nodes = sorted((dev / "dri").glob("renderD*")) if (dev / "dri").is_dir() else []
    kernel_driver = dev / "kfd"
    return (kernel_driver, *nodes) if build.startswith("rocm") and kernel_driver.exists() else tuple(nodes)


def nvml_binding() -> Any:
    """Return NVML's module; None where its library can't be: 3 MB that an agent without a driver does not hold."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
    with warnings.catch_warnings():
        # The deprecated package of the same name warns at import; the module we depend on comes from nvidia-ml-py.
        warnings.simplefilter("ignore")
        import pynvml  # noqa: PLC0415 - see above

    return pynvml


def device_nodes(minors: Iterable[int], dev: Path = Path("/dev")) -> tuple[Path, ...]:
    """List the nodes of these NVIDIA GPUs, by their minor numbers, and those that all of them share.

    ``nvidia-uvm-tools`` is asked for by drivers from 570 on; under WSL 2 there is ``dxg`` alone.
    """
    shared = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "dxg")
    names = (*(f"nvidia{minor}" for minor in minors), *shared)
    caps = sorted((dev / "nvidia-caps").glob("nvidia-cap*")) if (dev / "nvidia-caps").is_dir() else []
    return (*(dev / name for name in names if (dev / name).exists()), *caps)


def _minor(nvml: Any, handle: object) -> int:
    return int(nvml.nvmlDeviceGetMinorNumber(handle))


def _visible(count: int) -> list[int]:
    """Read the owner's own choice of GPUs; all of them if there is none, or it is by name (UUID)."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not all(part.strip().isdigit() for part in chosen.split(",") if part):
        return list(range(count))
    return [int(part) for part in chosen.split(",") if part and int(part) < count]


def _sample(nvml: Any, index: int, handle: object) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:  # a MIG slice has no rate of its own
        utilization = 0.0
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
        utilization=min(1.0, utilization),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
