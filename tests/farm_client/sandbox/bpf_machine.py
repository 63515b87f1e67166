"""The kernel's classic BPF machine, as far as seccomp programs use it: Documentation/networking/filter.rst."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

X86_64, AARCH64 = 0xC000003E, 0xC00000B7


@cache
def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """Return the array of struct sock_filter that a program is."""
    code = list(struct.iter_unpack("<HBBI", program))
    assert 0 < len(code) <= 4096
    return code


def evaluate(program: bytes, number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> int:
    """Return what a program answers to a call; an assertion fails where the kernel would have refused the program."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = instructions(program)
    accumulator, at = 0, 0
    while True:
        operation, yes, no, constant = code[at]
        at += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert constant % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= constant
            case 0x05:  # BPF_JMP | BPF_JA
                at += constant
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += yes if accumulator == constant else no
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += yes if accumulator >= constant else no
            case 0x45:  # BPF_JMP | BPF_JSET | BPF_K
                at += yes if accumulator & constant else no
            case 0x06:  # BPF_RET | BPF_K
                return int(constant)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")
