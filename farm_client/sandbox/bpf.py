"""Decisions over a system call as a program for the kernel's classic BPF machine.

A decision is a tree: load a word of the call, compare it, go one way or the other, until a ``Return`` ends it. Classic
BPF jumps forward only, and a tree needs no more: the code of a comparison is followed by that of its "no", then by that
of its "yes", so each piece ends in returns and can stand anywhere, and the length of the "no" is the distance to jump.
See Documentation/networking/filter.rst and include/uapi/linux/{bpf_common,filter,seccomp}.h of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS: what the kernel takes."""
NUMBER: Final = 0
"""Offset of the call's number in struct seccomp_data, in bytes."""
ARCHITECTURE: Final = 4
"""Offset of the AUDIT_ARCH_* of the call."""

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS: a 32-bit word of struct seccomp_data, into the accumulator
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_GO: Final = 0x05  # BPF_JMP | BPF_JA: forward by a 32-bit distance
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_LONGEST_JUMP: Final = 255
_INSTRUCTION: Final = struct.Struct("<HBBI")  # struct sock_filter: code, jt, jf, k; our machines are little-endian


def argument(index: int) -> int:
    """Return the offset of the low 32 bits of an argument, counted from 0.

    These are all that the kernel looks at in what it takes as an int (families, commands, pids, the flags of clone).
    To compare the high bits too would let a value through that differs only in what the kernel then drops.
    """
    return 16 + 8 * index


class Comparison(IntEnum):
    """How the accumulator is compared with a constant, unsigned: the code of the jump."""

    EQUAL = 0x15
    AT_LEAST = 0x35
    HAS_ANY_BIT = 0x45


@dataclass(frozen=True, slots=True)
class Return:
    """The end of a decision: a SECCOMP_RET_* with its data."""

    value: int


@dataclass(frozen=True, slots=True)
class LoadWord:
    """Load the word at an offset of struct seccomp_data, keep the bits of the mask, go on."""

    offset: int
    then: Decision
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare what was loaded last with a constant, and go one way or the other."""

    how: Comparison
    constant: int
    yes: Decision
    no: Decision


Decision = Return | LoadWord | Compare
Instruction = tuple[int, int, int, int]


def one_of(values: Sequence[int], yes: Decision, no: Decision) -> Decision:
    """Decide by whether what was loaded last is one of the values."""
    decision = no
    for value in reversed(values):
        decision = Compare(Comparison.EQUAL, value, yes, decision)
    return decision


def by_range(starts: Sequence[tuple[int, Decision]]) -> Decision:
    """Decide by the range that what was loaded last lies in: a binary search.

    Args:
        starts: the first value of each range, in ascending order, the first of them 0, and what to decide there.
    """
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    return Compare(Comparison.AT_LEAST, starts[middle][0], by_range(starts[middle:]), by_range(starts[:middle]))


def assemble(decision: Decision) -> bytes:
    """Return the program as an array of struct sock_filter.

    Raises: ValueError for a program that is longer than the kernel takes.
    """
    program = _instructions(decision)
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"a filter of {len(program)} instructions: the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _instructions(decision: Decision) -> list[Instruction]:
    match decision:
        case Return(value):
            return [(_RETURN, 0, 0, value)]
        case LoadWord(offset, then, mask):
            keep = [] if mask == 0xFFFFFFFF else [(_AND, 0, 0, mask)]
            return [(_LOAD, 0, 0, offset), *keep, *_instructions(then)]
        case Compare(how, constant, yes, no):
            below, above = _instructions(no), _instructions(yes)
            if len(below) <= _LONGEST_JUMP:
                return [(how, len(below), 0, constant), *below, *above]
            # Too far for the 8 bits of a comparison: it skips, or not, a jump that has 32.
            return [(how, 0, 1, constant), (_GO, 0, 0, len(below)), *below, *above]
