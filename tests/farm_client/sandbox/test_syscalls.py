"""The tables of system calls, held to the headers of the machine that the tests run on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farm_client.sandbox.syscalls import ALLOWED, NUMBERS

GENERIC_ONLY = {"syscalls", "arch_specific_syscall"}
"""Names of the generic header that are no calls."""
RENAMED = {"fstatat": "newfstatat", "sync_file_range2": "sync_file_range"}
"""What the generic header defines for 32-bit machines, or both ways."""


def header(path: str) -> dict[int, set[str]]:
    """Return the names that a header of the kernel gives to each number."""
    if not Path(path).is_file():
        pytest.skip(f"no {path} on this machine")
    found: dict[int, set[str]] = {}
    for name, number in re.findall(
        r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", Path(path).read_text("ascii"), re.MULTILINE
    ):
        found.setdefault(int(number), set()).add(RENAMED.get(name, name))
    return found


def test_x86_64_is_numbered_as_the_kernel_numbers_it() -> None:
    ours = {number: {name} for name, number in NUMBERS["x86_64"].items()}
    theirs = header("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    assert len(theirs) > 300
    assert {number: ours.get(number) for number in theirs} == theirs


def test_aarch64_is_numbered_as_the_generic_table_numbers_it() -> None:
    """arm64 has the generic table without what only 32-bit machines have: 403 to 423, the calls with 64-bit times."""
    ours = {number: {name} for name, number in NUMBERS["aarch64"].items()}
    theirs = {
        number: names
        for number, names in header("/usr/include/asm-generic/unistd.h").items()
        if not 403 <= number <= 423 and not names & GENERIC_ONLY
    }
    assert len(theirs) > 280
    assert {number: ours.get(number) for number in theirs} == theirs


def test_no_number_has_two_names_and_both_machines_end_alike() -> None:
    for numbers in NUMBERS.values():
        assert len(set(numbers.values())) == len(numbers)
        assert max(numbers, key=numbers.__getitem__) == "rseq_slice_yield"
        assert numbers["pidfd_send_signal"] == 424
        assert numbers["landlock_restrict_self"] == 446
        assert numbers["rseq_slice_yield"] == 471


def test_what_is_allowed_is_known() -> None:
    """A name that is misspelt would be refused in silence."""
    assert set().union(*NUMBERS.values()) >= ALLOWED
