"""Which device a task computes on, and what each class of device can do: CUDA, ROCm, XPU, MPS, and the processor.

ROCm is torch's CUDA interface on AMD's cards, and told apart by ``torch.version.hip`` alone. A task may have clients of
all classes at once: updates are numbers on the processor, in the model's own formats, wherever they were computed.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Final

import torch

from protocol.resources import DeviceClass

LENT_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
"""What the agent lends, of whatever class; set and empty: nothing but the processor."""
_MACOS_WITH_BFLOAT16: Final = (14, 0)


def choose_device() -> torch.device:
    """Return the first accelerator that torch can use and the agent lends, else the CPU.

    In the order CUDA or ROCm, XPU, MPS: a machine with a card of its own and an integrated one computes on the card.
    """
    if os.environ.get(LENT_VARIABLE) == "":
        return torch.device("cpu")
    return torch.device(next((name for name in ("cuda", "xpu", "mps") if _is_available(name)), "cpu"))


def _is_available(name: str) -> bool:
    if name == "mps":
        return torch.backends.mps.is_available()
    return bool(_interface(name).is_available())


def device_class(device: torch.device) -> DeviceClass:
    """Return the class of a device."""
    if device.type == "cuda" and torch.version.hip is not None:
        return DeviceClass.ROCM
    return DeviceClass(device.type)


def all_devices() -> list[torch.device]:
    """List the processor and every accelerator that torch can use here."""
    found = [torch.device("cpu")]
    for name in ("cuda", "xpu"):
        found += [torch.device(name, index) for index in range(_interface(name).device_count())]
    return [*found, torch.device("mps")] if torch.backends.mps.is_available() else found


def device_name(device: torch.device) -> str:
    """Return what a person calls a device."""
    if device.type in ("cuda", "xpu"):
        return str(_interface(device.type).get_device_name(device))
    return "CPU" if device.type == "cpu" else "Apple GPU"


def device_memory_bytes(device: torch.device) -> int:
    """Return the memory that a device has for tasks; 0 of the processor, whose memory the agent knows."""
    if device.type in ("cuda", "xpu"):
        return int(_interface(device.type).get_device_properties(device).total_memory)
    return torch.mps.recommended_max_memory() if device.type == "mps" else 0


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in double precision: Apple's do not, and Intel's smaller ones."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, and does not only imitate it."""
    if device.type in ("cuda", "xpu"):
        return bool(_interface(device.type).is_bf16_supported(including_emulation=False))
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(*_MACOS_WITH_BFLOAT16)


def scales_losses(device: torch.device) -> bool:
    """Whether torch can scale losses for float16 there: it can't on MPS."""
    return device.type != "mps"


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generators of a device; the processor's has its own."""
    if device.type == "mps":
        torch.mps.manual_seed(seed)
    elif device.type != "cpu":
        _interface(device.type).manual_seed_all(seed)


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of a device's generators, by names for a file; none of the processor."""
    if device.type == "cpu":
        return {}
    states = [torch.mps.get_rng_state()] if device.type == "mps" else _interface(device.type).get_rng_state_all()
    return {f"{device.type}.{number}": state for number, state in enumerate(states)}


def set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Let a device's generators go on as ``generator_states`` found them. Raises: KeyError if one is missing."""
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps.0"])
    elif device.type != "cpu":
        interface = _interface(device.type)
        interface.set_rng_state_all([states[f"{device.type}.{number}"] for number in range(interface.device_count())])


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch's allocator keeps of a device's memory beside what is in use."""
    if device.type != "cpu":
        _interface(device.type).empty_cache()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        _interface(device.type).synchronize(device)


def _interface(name: str) -> ModuleType:
    """Return torch's module for a type of device."""
    found: ModuleType = getattr(torch, name)
    return found
