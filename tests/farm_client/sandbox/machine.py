"""The rungs on this machine, as an agent would build them; for tests of the real thing.

    python -m tests.farm_client.sandbox.machine HOME

proves them and says what came of it: for a process of another user, whose packages come by PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import os
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from farm_client.executor.environment import executor_environment
from farm_client.sandbox import bubblewrap, podman
from farm_client.sandbox.confinement import Confinement, InContainer, InNamespaces, Landlocked
from farm_client.sandbox.policy import Bounds, SandboxPolicy
from farm_client.sandbox.protection import ALL, Protection
from farm_client.sandbox.prove import prove
from farm_client.sandbox.system_paths import interpreter_view
from protocol.sandbox import Rung

GIB = 1024**3
ROOT = Path(__file__).parents[3]
NOBODY = 65534


def environment(scratch: Path, inherited: Mapping[str, str]) -> Mapping[str, str]:
    """Make an executor's environment."""
    path = {"PYTHONPATH": inherited["PYTHONPATH"]} if "PYTHONPATH" in inherited else {}
    return {**executor_environment(scratch, 1, inherited), **path}


def policy(secrets: tuple[Path, ...] = (), bounds: Bounds | None = None) -> SandboxPolicy:
    """Return what tasks may see and use here; the tests' own modules among it."""
    view = interpreter_view((), secrets, "tests")
    packages = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    view = replace(view, read_only=(*view.read_only, *packages))
    return SandboxPolicy(view, bounds or Bounds(memory_bytes=8 * GIB, scratch_bytes=GIB), secrets)


def confinement(rung: Rung, what: SandboxPolicy, without: frozenset[Protection] = frozenset()) -> Confinement:
    """Return a rung, less some of its protections."""
    if rung is Rung.STRICT:
        return InNamespaces(next(bubblewrap.binaries()), what, ALL - without)
    if rung is Rung.CONTAINER:
        return InContainer(next(podman.binaries()), what, ALL - without)
    return Landlocked(what, ALL - without)


def as_nobody(module: str, tmp_path: Path, *, before: Sequence[str] = ()) -> tuple[str, str]:
    """Run a module of the tests on a home as an ordinary user; return what it printed, and what went wrong.

    It prints nothing where that user can read no Python with this code: neither this one nor the system's.
    ``before``: a program of root's that becomes that user itself, and goes on with the command that follows.
    """
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    packages = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    who: dict[str, Any] = {} if before else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    said, why = "", ""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            ended = subprocess.run(
                [*before, python, "-m", module, str(home)],
                **who,
                env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": packages},
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            why = str(error)
            continue
        said, why = ended.stdout, ended.stderr[-2000:]
        if said:
            break
    return said, why


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for one in (Rung.STRICT, Rung.LANDLOCK):
        print(asyncio.run(prove(confinement(one, policy((folder,))), folder, environment)).in_words())
