"""Halts all processes of an executor for a moment, and lets them go on: the task's code can't refuse it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.watch import tree


def halt(pid: int, *, supervised: bool) -> None:
    """Stop what runs under ``pid``; where that one only supervises the sandbox, it goes on: it ends the rest at need.

    Stopped processes can be killed. Where the system has no such signal (Windows) nothing happens.
    """
    if (stop := getattr(signal, "SIGSTOP", None)) is not None:
        _signal_all(pid, stop, supervised=supervised)


def go_on(pid: int, *, supervised: bool) -> None:
    """Let what runs under ``pid`` go on."""
    if (cont := getattr(signal, "SIGCONT", None)) is not None:
        _signal_all(pid, cont, supervised=supervised)


def keep_to_cores(pid: int, cores: frozenset[int]) -> None:
    """Let all threads of all processes under ``pid`` run on these cores alone; what they start keeps to them too.

    Where the system has no such thing nothing happens.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    for one in tree(pid):
        for thread in _threads(one):
            with suppress(OSError):  # it ended since it was listed
                if os.sched_getaffinity(thread) != cores:
                    os.sched_setaffinity(thread, cores)


def _signal_all(pid: int, number: signal.Signals, *, supervised: bool) -> None:
    for one in tree(pid):
        if one != pid or not supervised:
            with suppress(OSError):
                os.kill(one, number)


def _threads(pid: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
