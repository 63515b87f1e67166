"""The escape suite: every rung contains every case that it claims to, and the suite itself can fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from farm_client.sandbox import escapes
from farm_client.sandbox.escape_cases import CASES
from farm_client.sandbox.protection import Protection
from protocol.sandbox import Rung
from tests.farm_client.sandbox.machine import as_nobody
from tests.sandbox.suite import RUNGS, run_suite

NOT_ON_LANDLOCK = {"read_host_name", "read_cgroup", "see_processes", "fill_tmp", "fill_shm"}
NEEDS_A_DEVICE = {"open_gpu"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def test_there_are_over_forty_cases_and_each_file_is_one() -> None:
    files = {path.stem for path in Path(escapes.__path__[0]).glob("[a-z]*.py")}
    assert {case.name for case in CASES} == files
    assert len(CASES) == len(files) > 40
    assert all(case.tries.endswith(".") for case in CASES)


@pytest.mark.parametrize("rung", RUNGS)
async def test_every_case_is_contained_on_every_rung(home: Path, rung: Rung) -> None:
    results = await run_suite(home, rung)
    assert {name: one.detail for name, one in results.items() if one.contained is False} == {}
    not_run = {name for name, one in results.items() if one.contained is None}
    assert not_run - NEEDS_A_DEVICE == (NOT_ON_LANDLOCK if rung is Rung.LANDLOCK else set())
    assert all(one.detail for one in results.values())
    assert os.listdir(home) == [], "nothing is left behind"  # noqa: PTH208


async def test_a_case_says_how_it_ended(home: Path) -> None:
    names = ["segfault", "fork_bomb", "hang_in_c", "read_secret"]
    results = await run_suite(home, Rung.STRICT, names=names)
    assert results["segfault"].detail == "SIGSEGV"
    assert results["hang_in_c"].detail == "ended when its time was up"
    assert results["read_secret"].detail.startswith("FileNotFoundError")


async def test_without_a_sandbox_most_cases_escape(home: Path) -> None:
    """A case that can't fail says nothing. What is contained all the same is ended, measured, or dies by itself."""
    results = await run_suite(home, Rung.NONE)
    contained = {name for name, one in results.items() if one.contained}
    ended_by_the_agent = {
        "fork_bomb", "thread_bomb", "memory_together", "memory_unreadable", "memory_shared", "fill_disk",
        "fill_hidden_folder", "fill_deep_folder", "fill_unlinked", "fill_inodes", "unremovable_files",
        "nameless_daemon",
        "segfault", "abort_in_exit", "kill_supervisor", "hang_in_c", "stop_itself", "thread_outlives",
        "print_endlessly",
    }  # fmt: skip
    # by the agent's own environment and descriptors, and where the kernel knows no such calls
    by_the_lifeline = {"read_variable", "inherited_descriptors", "other_abi"}
    assert contained <= ended_by_the_agent | by_the_lifeline | {"connect_out"}
    assert sum(one.contained is False for one in results.values()) >= 40


MISSED_BY = {
    Protection.FILES: ("read_system_secrets",),  # the home of a test lies in /tmp, of which it has its own
    Protection.READ_ONLY: ("change_given",),
    Protection.SIZED_TMP: ("fill_tmp",),
    Protection.SIZED_SHM: ("fill_shm",),
    Protection.DEVICES: ("open_devices",),
    Protection.NETWORK: ("connect_loopback", "send_datagram", "connect_abstract"),
    Protection.PROCESSES: ("see_processes", "signal_other", "slow_other"),
    Protection.IPC: ("shared_memory_of_other",),
    Protection.HOST_NAME: ("read_host_name",),
    Protection.CGROUPS: ("read_cgroup",),
    Protection.CAPABILITIES: ("set_uid",),
    Protection.SYSTEM_CALLS: ("kernel_doors", "trace_agent", "type_into_terminal"),
    Protection.MEMORY: ("allocate_thirty_gigabytes", "memory_in_files"),
    Protection.FILE_SIZE: ("large_file",),
}
"""Cases that are no longer contained when the strict rung lacks one protection."""


@pytest.mark.parametrize("protection", sorted(MISSED_BY))
async def test_a_case_misses_each_protection_that_is_taken_away(home: Path, protection: Protection) -> None:
    if os.getuid() != 0 and protection is Protection.DEVICES:
        pytest.skip("an ordinary user opens no device that matters, sandboxed or not")
    results = await run_suite(home, Rung.STRICT, frozenset({protection}), MISSED_BY[protection])
    assert {name for name, one in results.items() if one.contained is False} == set(MISSED_BY[protection])


@pytest.mark.parametrize(
    ("protection", "name"),
    [
        (Protection.FILES, "read_secret"),
        (Protection.FILES, "write_beside_secret"),
        (Protection.SYSTEM_CALLS, "send_datagram"),
        (Protection.SYSTEM_CALLS, "connect_unix"),
        (Protection.MEMORY, "allocate_thirty_gigabytes"),
        (Protection.FILE_SIZE, "large_file"),
    ],
)
async def test_so_does_one_on_landlock(home: Path, protection: Protection, name: str) -> None:
    results = await run_suite(home, Rung.LANDLOCK, frozenset({protection}), [name])
    assert results[name].contained is False


def test_an_ordinary_user_s_rungs_contain_them_too(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("the tests above ran as an ordinary user")
    said, why = as_nobody("tests.sandbox.suite", tmp_path)
    if not said:
        pytest.skip(f"no other user can read a Python with this code here: {why}")
    results = [json.loads(line) for line in said.splitlines()]
    assert [one for one in results if one["contained"] is False] == []
    assert len(results) == len(RUNGS) * len(CASES), why
