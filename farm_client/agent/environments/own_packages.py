"""Which packages of a lock this machine installs, and which are its own already: torch, NumPy and what the farm needs.

An executor has imported them before it has a task, so no environment can bring others. Two of them must be near what
the lock was made with: what is compiled against torch works with that release of it, and against NumPy with that major
version. Else the environment is refused, by name.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from farm_client.agent.errors import NoEnvironment
from protocol.locks import Pin

_OURS: Final = "aifarm"
_ALSO: Final = ("torch", "numpy")
_OF_TORCH: Final = ("nvidia-", "pytorch-triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit")
"""What wheels of torch for other accelerators bring: gigabytes that this machine's torch has, or has no use for."""
_TRITON: Final = "triton"
_BUILT_FOR_CUDA: Final = frozenset({"torchvision", "torchaudio"})
"""What PyPI has for Linux on x86_64 is built for CUDA, and fails at its import beside a torch without."""
_NEAR: Final = {"torch": 2, "numpy": 1}
"""So many numbers of the version must be equal."""


def to_install(pins: Iterable[Pin], own: Mapping[str, str]) -> list[Pin]:
    """Return the pins that this machine's Python needs and does not have of its own.

    ``own``: versions by normalized name. Raises: NoEnvironment naming the package that would have to be another one.
    """
    wanted = []
    for pin in pins:
        if pin.marker and not Marker(pin.marker).evaluate():
            continue
        if _is_own(pin.name, own):
            _check_near(pin, own)
        else:
            _check_build(pin, own)
            wanted.append(pin)
    return wanted


def _is_own(name: str, own: Mapping[str, str]) -> bool:
    return name in own or name in {_OURS, _TRITON, *_ALSO} or name.startswith(_OF_TORCH)


def _check_near(pin: Pin, own: Mapping[str, str]) -> None:
    numbers = _NEAR.get(pin.name)
    if numbers is None or pin.name not in own:
        return
    if Version(pin.version).release[:numbers] != Version(own[pin.name]).release[:numbers]:
        raise NoEnvironment(
            f"the task's lock pins {pin.name} {pin.version}, and this machine runs {pin.name} {own[pin.name]}"
        )


def _check_build(pin: Pin, own: Mapping[str, str]) -> None:
    torch = own.get("torch", "")
    is_for_cuda = pin.name in _BUILT_FOR_CUDA and Version(pin.version).local is None
    if is_for_cuda and torch.endswith("+cpu") and (sys.platform, platform.machine()) == ("linux", "x86_64"):
        raise NoEnvironment(
            f"the task's lock pins {pin.name} {pin.version} as PyPI has it, built for CUDA, and this machine runs "
            f"torch {torch}: for such machines pin {pin.name} {pin.version}+cpu, from PyTorch's index"
        )


@cache
def own_packages() -> Mapping[str, str]:
    """Return the versions of what an installed client needs, by normalized name; found by following requirements."""
    found: dict[str, str] = {}
    pending = [(_OURS, frozenset({"client"})), *((name, frozenset[str]()) for name in _ALSO)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            asked = Requirement(text)
            if any(asked.marker is None or asked.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                pending.append((canonicalize_name(asked.name), frozenset(asked.extras)))
    return found
