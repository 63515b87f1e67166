"""The packages of a task's environment on an executor's path: before what else is installed, behind Python's own.

What an executor is made of is imported already, and stays what it is: a folder that has something by such a name is
refused, since half of it would be one and half the other.
"""

from __future__ import annotations

import importlib
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import FarmError

OWN_MODULES: Final = ("coordinator", "farm_client", "farm_server", "numpy", "protocol", "storage", "torch")


class ShadowsOwn(FarmError):
    """The task's environment holds a package that is the farm's own."""

    code = "shadows_own"


def shadowed(folder: Path) -> str | None:
    """Return the first of the farm's own modules that a folder of packages would take the place of."""
    found = {entry.name.partition(".")[0] for entry in folder.iterdir()}
    return next((name for name in OWN_MODULES if name in found), None)


def use_packages(folder: Path) -> None:
    """Let this process import what lies in a folder. Raises: ShadowsOwn; OSError if there is no such folder."""
    if (name := shadowed(folder)) is not None:
        raise ShadowsOwn(f"the task's environment would take the place of this machine's own {name}")
    places = [index for index, entry in enumerate(sys.path) if entry in set(_package_folders())]
    sys.path.insert(min(places, default=len(sys.path)), str(folder))
    importlib.invalidate_caches()


def _package_folders() -> Iterator[str]:
    yield from site.getsitepackages()
    yield site.getusersitepackages()
    yield sysconfig.get_path("purelib")
    yield sysconfig.get_path("platlib")
