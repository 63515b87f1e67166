"""`farm-client doctor`: what this machine could lend, and how it would hold strangers' code. It joins nothing."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from farm_client.agent.environments.installer import INSTALL_UV, find_uv
from farm_client.agent.environments.stats import EnvironmentStats
from farm_client.agent.environments.store import EnvironmentStore
from farm_client.agent.executors.confining import environment_of, task_policy
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.machine.probe import Lending, Probe
from farm_client.agent.owner.policy import load_policy
from farm_client.agent.settings import AgentSettings
from farm_client.sandbox.cgroups import find_delegation
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.ladder import try_all
from farm_client.sandbox.prove import Proof
from protocol.sandbox import Rung
from protocol.terminal_text import one_line
from protocol.wording import sized

_EXECUTOR: str = "farm_client.executor"


def examine(settings: AgentSettings) -> dict[str, Any]:
    """Try every rung, look at the machine, and return what was found, as plain values."""
    probe = Probe(Path.home(), Lending(settings.cpu_cores, settings.max_ram))
    try:
        proofs = asyncio.run(_proofs(settings, probe))
        resources, load = probe.resources(), probe.load()
    finally:
        probe.close()
    holding = [proof for proof in proofs if proof.holds and proof.rung.holds(settings.sandbox)]
    return {
        "rungs": [_rung(proof) for proof in proofs],
        "uses": holding[0].rung.value if holding else Rung.NONE.value,
        "least": settings.sandbox.value,
        "environments": _environments(settings),
        "control_groups": () if (groups := find_delegation()) is None else groups.controllers,
        "resources": resources.model_dump(),
        "load": load.model_dump(),
    }


def _environments(settings: AgentSettings) -> dict[str, Any]:
    """Say what is installed for tasks, whether more may be, and with what."""
    home = HomeFolder(settings.home.absolute())
    kept = EnvironmentStore(home.environments_dir, settings.environment_bytes).list()
    uv, policy = find_uv(), load_policy(home.policy_file)
    return {
        "built": len(kept),
        "size_bytes": sum(about.size_bytes for about in kept),
        "max_bytes": settings.environment_bytes,
        "installs": policy.allow_installs,
        "download_rate": policy.download_rate or settings.download_rate,
        "uv": None if uv is None else str(uv),
    }


async def _proofs(settings: AgentSettings, probe: Probe) -> list[Proof]:
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = HomeFolder(settings.home.absolute())
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home.root) as folder:
        try:
            policy = task_policy(home, probe, _EXECUTOR)
        except SandboxUnavailable as error:
            return [Proof(Rung.STRICT, problem=error.message)]
        return [proof async for proof in try_all(policy, Path(folder), environment_of(probe))]


def _rung(proof: Proof) -> dict[str, Any]:
    return {
        "rung": proof.rung.value,
        "by": proof.by,
        "holds": proof.holds,
        "problem": proof.problem,
        "breaches": [breach._asdict() for breach in proof.breaches],
        "probes": proof.probes,
        "seconds": round(proof.seconds, 3),
    }


def in_lines(found: dict[str, Any]) -> list[str]:
    """Say what was found in lines for a person."""
    resources, load = found["resources"], found["load"]
    lines = [
        f"{resources['hostname']}: {resources['platform']}, {resources['cpu_cores']} cores, "
        f"{sized(resources['ram_bytes'])} of memory, {sized(load['disk_free_bytes'])} of disk free"
    ]
    lines += [f"GPU {gpu['index']}: {one_line(gpu['name'])}" for gpu in resources["gpus"]] or [
        "no NVIDIA GPU found; others are found when the client joins"
    ]
    lines += [_rung_line(rung) for rung in found["rungs"]] or [
        f"sandbox: none is known for {sys.platform}; Linux has them"
    ]
    groups = found["control_groups"]
    lines.append(
        f"control groups: {', '.join(groups)}" if groups else "control groups: none are delegated to this user"
    )
    if found["uses"] == Rung.NONE.value:
        lines.append(f"tasks would not be taken: no sandbox holds that is {found['least']} or better")
    else:
        lines.append(f"tasks would run in the {found['uses']} sandbox")
    lines.append(environments_line(found["environments"]))
    return lines


def environments_line(about: dict[str, Any]) -> str:
    """Say in a line what is installed for tasks, and how more would be."""
    stats = EnvironmentStats(environments=about["built"], size_bytes=about["size_bytes"], installs=about["installs"])
    if not about["installs"]:
        return f"{stats.in_words()} (farm-client set --allow-installs)"
    if not about["uv"]:
        return f"{stats.in_words()}, but {INSTALL_UV}"
    beyond = "" if about["download_rate"] is None else ", which knows no rate: --download-rate does not hold for it"
    return f"{stats.in_words()}, by {about['uv']}{beyond}"


def _rung_line(rung: dict[str, Any]) -> str:
    name = f"sandbox {rung['rung']}" + (f" ({rung['by']})" if rung["by"] else "")
    if rung["holds"]:
        return f"{name}: holds, tried with escape probes {rung['probes']} in {1000 * rung['seconds']:.0f} ms"
    if rung["problem"]:
        return f"{name}: not available: {one_line(rung['problem'])}"
    tried = "; ".join(f"{breach['protection']}: could {breach['what']}" for breach in rung["breaches"])
    return f"{name}: REFUSED: {one_line(tried)}"
