"""Chooses the rung of this machine: the best one that the escape probes do not get out of."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from farm_client.sandbox import bubblewrap, podman
from farm_client.sandbox.confinement import UNCONFINED, Confinement, InContainer, InNamespaces, Landlocked
from farm_client.sandbox.policy import SandboxPolicy
from farm_client.sandbox.prove import Environment, Proof, prove
from protocol.sandbox import Rung, Sandbox


@dataclass(frozen=True, slots=True)
class SandboxChoice:
    """The rung to use, and what came of all that were tried, the best first. ``UNCONFINED`` if none holds."""

    confinement: Confinement
    proofs: tuple[Proof, ...]

    @property
    def sandbox(self) -> Sandbox:
        """What a farm is told."""
        if self.confinement.rung is Rung.NONE:
            return Sandbox(rung=Rung.NONE)
        return Sandbox(rung=self.proofs[-1].rung, probes=self.proofs[-1].probes)


async def choose(
    policy: SandboxPolicy, parent: Path, environment: Environment, least: Rung = Rung.CONTAINER
) -> SandboxChoice:
    """Try the rungs from the best down to ``least``, and stop at the first that holds.

    ``parent`` is a folder of the agent, in which rooms can be made and which tasks must not see.
    """
    proofs = []
    for confinement in rungs(policy):
        if not confinement.rung.holds(least):
            break
        proof = await prove(confinement, parent, environment)
        proofs.append(proof)
        if proof.holds:
            return SandboxChoice(confinement, tuple(proofs))
    return SandboxChoice(UNCONFINED, tuple(proofs))


async def try_all(policy: SandboxPolicy, parent: Path, environment: Environment) -> AsyncIterator[Proof]:
    """Prove every rung that this system might have, the best first."""
    for confinement in rungs(policy):
        yield await prove(confinement, parent, environment)


def rungs(policy: SandboxPolicy) -> Iterator[Confinement]:
    """List the ways to confine a process that are worth a try on this system, the best first."""
    if sys.platform != "linux":
        return
    for binary in bubblewrap.binaries():
        yield InNamespaces(binary, policy)
    yield Landlocked(policy)
    for binary in podman.binaries():
        yield InContainer(binary, policy)
