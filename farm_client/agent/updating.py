"""`farm-client update --check`: whether the package index has a newer version. It asks, and installs nothing.

pip is asked: it knows its owner's index, proxies and certificates, and which versions fit this Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from farm_client.agent.connection.farm_choice import SECRET_VARIABLES

PACKAGE: Final = "aifarm"
_PIP: Final = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "index", "versions", PACKAGE)
_ASKING_SECONDS: Final = 60
_VERSIONS: Final = re.compile(r"^Available versions: (.+)$", re.MULTILINE)

Ask = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, slots=True)
class UpdateCheck:
    """What came of asking. ``newest`` is None where the index could not say, and ``problem`` tells why."""

    installed: str
    newest: str | None = None
    is_listed: bool = False
    """Whether the index has the installed version: one from a repository it has not, and then cannot compare."""
    problem: str = ""

    def in_words(self) -> str:
        """Say it in a line, with what to do."""
        if self.newest is None:
            return f"farm-client {self.installed}; whether there is a newer one could not be found out: {self.problem}"
        if self.newest == self.installed:
            return f"farm-client {self.installed} is the newest"
        how = (
            f"install it with: {sys.executable} -m pip install --upgrade '{PACKAGE}[client]', and start the agent anew"
        )
        if self.is_listed:
            return f"farm-client {self.newest} is there, this is {self.installed}; {how}"
        return f"this is farm-client {self.installed}, which the index does not have; its newest is {self.newest}"


def check_for_update(ask: Ask | None = None, environ: Mapping[str, str] = os.environ) -> UpdateCheck:
    """Ask pip's index. Never raises: what goes wrong is in the answer."""
    installed = version(PACKAGE)
    kept = {name: value for name, value in environ.items() if name not in SECRET_VARIABLES}
    try:
        done = (ask or _ask)(_PIP, kept)
    except (OSError, subprocess.TimeoutExpired) as error:
        return UpdateCheck(installed, problem=f"pip could not be run ({error})")
    found = _VERSIONS.search(done.stdout)
    if done.returncode != 0 or found is None:
        return UpdateCheck(installed, problem=_problem(done.stderr))
    versions = [one.strip() for one in found[1].split(",")]  # the newest first
    return UpdateCheck(installed, versions[0], installed in versions)


def _ask(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env=dict(environ),
        timeout=_ASKING_SECONDS,
        check=False,
    )


def _problem(stderr: str) -> str:
    """Return the last thing that pip said, which is what ended it."""
    if "No module named pip" in stderr:
        return "this Python has no pip, which would be asked; ask what you installed it with"
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip says: {lines[-1]}" if lines else "pip did not say why"
