"""Reads ``pylock.toml``. Source: PEP 751, and https://packaging.python.org/specifications/pylock-toml/."""

from __future__ import annotations

import re
from typing import Final

from packaging.pylock import Package, Pylock, PylockUnsupportedVersionError, PylockValidationError

from farm_client.sdk.lock_files.toml_lines import EntryLines, read_toml
from protocol.errors import InvalidTask
from protocol.locks import Pin

_ENTRY: Final = re.compile(r"packages\[(\d+)\]")
_CHOSEN: Final = re.compile(r"\b(extras|dependency_groups)\b")


def read_pylock(text: str) -> list[Pin]:
    """Return the pins of a ``pylock.toml``. Raises: InvalidTask naming the line of the first entry that is none."""
    lines = EntryLines(text, "packages")
    try:
        packages = Pylock.from_dict(read_toml(text)).packages
    except PylockUnsupportedVersionError as error:
        raise InvalidTask(f"it is of a version of PEP 751 that is not known here: {error}") from error
    except PylockValidationError as error:
        entry = _ENTRY.search(str(error))
        raise lines.error(int(entry[1]) if entry else 0, error) from error
    pins = []
    for index, package in enumerate(packages):
        try:
            pins.append(_pin_of(package))
        except ValueError as error:
            raise lines.error(index, error) from error
    return pins


def _pin_of(package: Package) -> Pin:
    if package.vcs is not None or package.archive is not None:
        raise ValueError(f"{package.name} is taken from an address: lock a version of the index")
    if package.directory is not None:
        raise ValueError(f"{package.name} is a folder of yours: export with --no-emit-project")
    if package.version is None:
        raise ValueError(f"{package.name} is not pinned to a version")
    if not package.wheels:
        raise ValueError(f"{package.name} has no wheel, and volunteers build nothing: take a version that has one")
    marker = "" if package.marker is None else str(package.marker)
    if chosen := _CHOSEN.search(marker):
        raise ValueError(f"{package.name} is needed for some {chosen[1]} only: export a lock without them")
    named = [(kind, digest) for wheel in package.wheels for kind, digest in wheel.hashes.items()]
    hashes = [f"{kind}:{digest}" for kind, digest in named if kind in {"sha256", "sha384", "sha512"}]
    return Pin.checked(package.name, str(package.version), marker, hashes)
