"""Which files of this machine a Python process with torch needs to see: the system, the interpreter, its packages.

All of it is read-only inside. Nothing of a home is among it but the interpreter's own folders, if they lie there.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final

from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.policy import VisibleFiles

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/opt/rocm")
_ETC: Final = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "os-release")
"""What of /etc is needed to load libraries and to tell the time. No passwd: other users are nobody's business."""
_PROCESSORS: Final = ("/sys/devices/system/cpu", "/sys/devices/system/node")
"""How many threads are worth it; of the rest of /sys only a GPU's driver needs something."""
_OWN: Final = ("farm_client", "protocol")
_LOOKED_AT: Final = 4
"""Files of a package that are looked at for where its links lead."""


def interpreter_view(
    devices: tuple[Path, ...] = (), hidden: Iterable[Path] = (), package: str = "farm_client"
) -> VisibleFiles:
    """Return what this interpreter and its packages need to be seen.

    ``hidden`` are folders with secrets; ``package`` is that of the module that is run.
    Raises: SandboxUnavailable if a secret lies in what must be seen.
    """
    links: dict[Path, str] = {}
    seen: list[Path] = []
    for path in _existing(_SYSTEM):
        if path.is_symlink():
            links[path] = str(path.readlink())
        else:
            seen.append(path)
    seen += _existing(f"/etc/{name}" for name in _ETC)
    seen += _existing(("/sys",) if devices else _PROCESSORS)
    seen += _python_folders((*_OWN, package.partition(".")[0]))
    view = VisibleFiles(_outermost(seen), links, devices)
    _keep_apart(view, hidden)
    return view


def _python_folders(packages_run: Iterable[str]) -> Iterator[Path]:
    """List the folders of the interpreter, of its packages, and of our own two, wherever links of theirs lead."""
    executable = Path(sys.executable).resolve()
    yield from {Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), executable.parent}
    site_packages = [Path(path) for path in (*site.getsitepackages(), *_user_packages()) if Path(path).is_dir()]
    for folder in site_packages:
        yield folder
        yield from _linked_roots(folder)
    for name in packages_run:
        spec = find_spec(name)
        for path in (spec and spec.submodule_search_locations) or ():
            yield Path(path).absolute()
            yield Path(path).resolve()
    yield from _existing(part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part)


def _user_packages() -> tuple[str, ...]:
    return (site.getusersitepackages(),) if site.ENABLE_USER_SITE else ()


def _linked_roots(packages: Path) -> Iterator[Path]:
    """List where packages that are linked lie: installers such as uv can link each file to their store."""
    roots = set()
    for entry in packages.iterdir():
        some = [entry] if entry.is_symlink() or not entry.is_dir() else _some_files(entry)
        for file in some:
            if file.is_symlink():
                roots.add(_root_of(file, packages))
    yield from roots


def _some_files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [file for file in islice(folder.iterdir(), _LOOKED_AT) if file.is_symlink()]
    return []


def _root_of(link: Path, packages: Path) -> Path:
    """Return what stands for the packages' folder where a link of theirs leads: its target less the common end."""
    target, ours = link.resolve(), link.relative_to(packages)
    ends = target.parts[-len(ours.parts) :] == ours.parts
    return Path(*target.parts[: -len(ours.parts)]) if ends else target


def _existing(paths: Iterable[str]) -> list[Path]:
    return [path for path in map(Path, paths) if path.exists() and path != Path("/")]


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Leave out what lies in another one of them."""
    kept: list[Path] = []
    for path in sorted({Path(os.path.normpath(path)) for path in paths if path.exists()}):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(kept)


def _keep_apart(view: VisibleFiles, hidden: Iterable[Path]) -> None:
    for secret in hidden:
        if (inside := next((path for path in view.read_only if _holds(path, secret)), None)) is not None:
            raise SandboxUnavailable(
                f"{secret} lies in {inside}, which the tasks' Python needs to see; "
                "keep the agent's folder elsewhere (--home), or install the farm's Python elsewhere"
            )


def _holds(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
