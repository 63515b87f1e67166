"""The container rung on this machine's Podman, as an ordinary user: proved, missed where less is there, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm_client.sandbox import podman
from tests.farm_client.sandbox.machine import NOBODY, as_nobody
from tests.sandbox.container_rung import CASES, TAKEN_AWAY

UNIFIED = Path("/sys/fs/cgroup/unified")
BECOME = (
    *("unshare", "--mount", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh"),
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env"),
)
"""Beside control groups of version 1, crun takes the mount of version 2 for a system that has only those.

``env`` is the first program without root's rights: setpriv still has them when it looks for the next one."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder of another user's: pytest's own are root's alone again when another pytest starts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, list[Any]]:
    """What was tried, once for all tests: each is a container, and takes half a second."""
    if next(podman.binaries(), None) is None:
        pytest.skip("there is no Podman here (apt install podman crun uidmap), so the container rung was not tried")
    module = "tests.sandbox.container_rung"
    if os.getuid() == 0:
        said, why = as_nobody(module, folder, before=BECOME if UNIFIED.is_mount() else ())
    else:
        ended = subprocess.run([sys.executable, "-m", module, str(folder)], capture_output=True, text=True, check=False)
        said, why = ended.stdout, ended.stderr[-2000:]
    if not said:
        pytest.skip(f"no other user can read a Python with this code here: {why}")
    found = {name: what for name, *what in map(json.loads, said.splitlines())}
    if found["works"] != [""]:
        pytest.skip(f"Podman starts no container of an ordinary user here: {found['works'][0]}")
    assert "left" in found, why
    return found


def test_it_holds(results: dict[str, list[Any]]) -> None:
    assert results["without nothing"] == [[], ""]


@pytest.mark.parametrize("protection", TAKEN_AWAY)
def test_each_protection_that_is_taken_away_is_missed(results: dict[str, list[Any]], protection: str) -> None:
    breaches, problem = results[f"without {protection}"]
    assert (protection in breaches, problem) == (True, "")


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_the_escape_suite_is_contained(results: dict[str, list[Any]], case: str) -> None:
    (result,) = results[f"case {case}"]
    assert (result["contained"], result["rung"]) == (True, "container"), result["detail"]


def test_what_ends_in_it_ends_by_its_own_name(results: dict[str, list[Any]]) -> None:
    """It speaks over the descriptor that it was given, as an ordinary user, with nothing of Podman's variables."""
    assert results["ends with 7"] == [[1000, [], True], 7]
    assert results["ends with -9"] == [[1000, [], True], -9]


def test_it_ends_with_a_killed_agent(results: dict[str, list[Any]]) -> None:
    assert results["killed agent"] == [[]]


def test_it_ends_with_its_keeper_and_the_next_agent_ends_what_podman_left(results: dict[str, list[Any]]) -> None:
    assert results["killed keeper"] == [[], []]


def test_nothing_is_left(results: dict[str, list[Any]]) -> None:
    assert results["left"] == [[], []]
