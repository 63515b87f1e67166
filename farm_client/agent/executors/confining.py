"""Chooses this machine's sandbox at the agent's start, or says why no work can be taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from farm_client.agent.errors import NoSandbox
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.machine.probe import Probe, memory_limit_bytes
from farm_client.agent.settings import AgentSettings
from farm_client.executor.environment import executor_environment
from farm_client.sandbox.confinement import UNCONFINED
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.ladder import SandboxChoice, choose
from farm_client.sandbox.policy import Bounds, SandboxPolicy
from farm_client.sandbox.prove import Proof
from farm_client.sandbox.system_paths import interpreter_view
from protocol.sandbox import Rung

_LEAST_PROCESSES: Final = 1024
_PROCESSES_A_CORE: Final = 64
"""Each library brings a thread for each core, and so does each worker process of a data loader."""
_LEAST_SCRATCH_BYTES: Final = 1024**3
_STDERR: Final = 2
_NONE: Final = "NO SANDBOX: tasks of the named submitters run with all rights of this user (--allow-unsandboxed)"
_INSTALL: Final = "on Debian and Ubuntu: sudo apt install bubblewrap"


def require_runnable() -> None:
    """Check that executors can run on this system at all. Raises: NoSandbox saying where they can."""
    if sys.platform == "win32":
        raise NoSandbox(
            "tasks do not run on Windows itself: agent and executor speak over Unix sockets, and no sandbox is known "
            "there. In WSL 2 farm-client runs as on Linux, with its sandboxes"
        )


async def choose_sandbox(
    home: HomeFolder, probe: Probe, settings: AgentSettings, package: str, tell: Callable[[str], None]
) -> SandboxChoice:
    """Prove rungs from the best down to the owner's least, and return the first that holds.

    Without any if none holds, or the owner wants none to be tried, and allows it. ``package`` is the executor's.
    Raises: NoSandbox if nothing holds.
    """
    if settings.sandbox is Rung.NONE:
        tell(_NONE)
        return SandboxChoice(UNCONFINED, ())
    try:
        policy = task_policy(home, probe, package)
    except SandboxUnavailable as error:
        choice = SandboxChoice(UNCONFINED, (Proof(Rung.STRICT, problem=error.message),))
    else:
        choice = await choose(policy, home.scratch_dir, environment_of(probe), settings.sandbox)
    for proof in choice.proofs:
        if not proof.holds:
            tell(f"sandbox {proof.in_words()}")
    if choice.confinement.rung is not Rung.NONE:
        tell(f"sandbox {choice.proofs[-1].in_words()}")
        return choice
    if settings.allow_unsandboxed:
        tell(_NONE)
        return choice
    raise NoSandbox(_refusal(choice.proofs, settings.sandbox))


def task_policy(home: HomeFolder, probe: Probe, package: str) -> SandboxPolicy:
    """Return what tasks may see and use here. Raises: SandboxUnavailable."""
    devices = probe.accelerators.device_nodes
    free_bytes = psutil.disk_usage(str(home.root)).free
    return SandboxPolicy(
        view=interpreter_view(devices, (home.root,), package),
        bounds=Bounds(
            # CUDA reserves addresses that a kernel's limit would count as memory: there it is only measured
            memory_bytes=probe.lent_bytes(memory_limit_bytes()),
            counts_memory=not devices,
            processes=max(_LEAST_PROCESSES, _PROCESSES_A_CORE * probe.cpu_cores),
            scratch_bytes=max(_LEAST_SCRATCH_BYTES, free_bytes // 2),
        ),
        secrets=(home.root,),
    )


def keep_descriptors() -> None:
    """Pass on nothing that this process inherited: a shell's open file would be open in a sandbox, too."""
    with suppress(OSError):  # no such folder on this system, where the standard library closes what it can
        for name in [entry.name for entry in Path("/proc/self/fd").iterdir()]:
            with suppress(OSError):  # that of the listing itself
                if int(name) > _STDERR:
                    os.set_inheritable(int(name), False)


def environment_of(probe: Probe) -> Callable[[Path, Mapping[str, str]], Mapping[str, str]]:
    """Return what makes an executor's environment."""
    return lambda scratch, inherited: executor_environment(scratch, probe.cpu_cores, inherited)


def _refusal(proofs: tuple[Proof, ...], least: Rung) -> str:
    if sys.platform != "linux":
        why = f"there is no sandbox for strangers' code on {sys.platform} yet: a Linux machine, or a container, has one"
    else:
        tried = "; ".join(proof.in_words() for proof in proofs) or f"--sandbox {least} leaves none to try"
        why = f"no sandbox holds strangers' code on this machine ({tried}). What helps most is bubblewrap ({_INSTALL})"
    return f"{why}. To run the tasks of people whom you trust without one: --allow-unsandboxed --for NAME"
