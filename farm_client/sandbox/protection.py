"""The protections of a sandbox, by name: what each is against, and what a probe that finds it missing says."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Protection(StrEnum):
    """One thing that a sandbox does. Rungs build on those that their kernel features give."""

    FILES = "files"
    """Only what was given can be seen: no home, no files of other programs or of the agent."""
    READ_ONLY = "read_only"
    """What can be seen cannot be changed: the system, the interpreter, the files of the cache."""
    SIZED_TMP = "sized_tmp"
    """The folder for temporary files has a size, so that memory cannot be filled with it."""
    SIZED_SHM = "sized_shm"
    """So has the one for shared memory."""
    DEVICES = "devices"
    """No device node but those of the granted accelerators and the harmless ones."""
    NETWORK = "network"
    """No network at all, loopback included."""
    PROCESSES = "processes"
    """Other processes can be neither seen nor signalled."""
    IPC = "ipc"
    """No System V or POSIX queues, and no shared memory segments of other programs."""
    HOST_NAME = "host_name"
    """The machine's name is not told, and cannot be changed."""
    CGROUPS = "cgroups"
    """The machine's tree of control groups is not told."""
    CAPABILITIES = "capabilities"
    """No capability is held, or can be gained."""
    NEW_NAMESPACES = "new_namespaces"
    """No further user namespaces, in which a task would be root and reach more of the kernel."""
    SYSTEM_CALLS = "system_calls"
    """A filter of system calls: no ptrace, mount, bpf, keyctl, io_uring and their like."""
    MEMORY = "memory"
    """A bound on memory."""
    FORKS = "forks"
    """A bound on processes and threads."""
    FILE_SIZE = "file_size"
    """A bound on what is written."""
    DESCRIPTORS = "descriptors"
    """Nothing is inherited but the agent's socket and the output."""
    ENVIRONMENT = "environment"
    """Nothing of the volunteer's environment is inherited but an allow-list."""


ALL: Final = frozenset(Protection)
