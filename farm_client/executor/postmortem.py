"""Why an executor died, in a sentence for the researcher's terminal."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.executor.messages import OUT_OF_MEMORY
from farm_client.sandbox.lifeline import NOT_CONFINED
from farm_client.sandbox.watch import Excess

OVER_BOUND: Final = "over_bound"
HUNG: Final = "hung"
DIED_LATER: Final = "died_later"
"""It had computed its assignment, and was at the next one."""
_KERNEL_COUNTERS: Final = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class ProcessDeath:
    """How an executor ended.

    ``code`` is ``out_of_memory``, ``killed``, ``exited``, ``bad_report``, ``over_bound``, ``hung``, ``died_later`` or
    ``not_confined``.
    """

    code: str
    message: str


def explain_death(
    exit_code: int, ran_out_of_memory: bool, broke_protocol: str | None, over: Excess | None = None
) -> ProcessDeath:
    """Name the cause. ``exit_code`` is negative for a signal, as ``subprocess`` has it.

    ``ran_out_of_memory``: the kernel's out-of-memory killer was at work while the executor lived. ``over``: the bound
    for which the agent ended it.
    """
    if over is not None:
        code = OUT_OF_MEMORY if over.bound == "memory" else OVER_BOUND
        return ProcessDeath(code, f"the executor was ended: {over.sentence}")
    if broke_protocol is not None:
        return ProcessDeath("bad_report", f"the executor was stopped: {broke_protocol}")
    if exit_code == NOT_CONFINED:
        return ProcessDeath(
            "not_confined", "the executor did not start, because its sandbox could not be made, or did not hold"
        )
    if exit_code >= 0:
        return ProcessDeath("exited", f"the executor exited by itself with code {exit_code}")
    name = _signal_name(-exit_code)
    if -exit_code == signal.SIGKILL and ran_out_of_memory:
        return ProcessDeath(OUT_OF_MEMORY, f"the executor was killed ({name}) because memory ran out on this machine")
    return ProcessDeath("killed", f"the executor was killed by {name}")


def oom_kills() -> int:
    """Read how often this system's out-of-memory killer has struck since boot; 0 where it does not say."""
    try:
        counters = _KERNEL_COUNTERS.read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
