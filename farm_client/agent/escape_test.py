"""`farm-client escape-test`: hostile code in the sandboxes of this machine, for an owner who wants to see it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from farm_client.agent.errors import BadSettings
from farm_client.agent.executors.confining import environment_of, keep_descriptors, task_policy
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.machine.probe import Lending, Probe
from farm_client.agent.settings import AgentSettings
from farm_client.sandbox.confinement import Confinement
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.escape_cases import CASES, EscapeCase
from farm_client.sandbox.escape_run import EscapeResult, run_case
from farm_client.sandbox.ladder import rungs
from farm_client.sandbox.prove import prove
from protocol.sandbox import Rung
from protocol.terminal_text import one_line

_EXECUTOR: Final = "farm_client.executor"
_MARKS: Final = {True: "contained", False: "ESCAPED", None: "not run"}

OnEscapeResult = Callable[[EscapeResult], None]


@dataclass(frozen=True, slots=True)
class EscapeReport:
    """All results, by rung in the ladder's order, and why the rungs that are not among them could not be tried."""

    results: tuple[EscapeResult, ...]
    refused: dict[str, str]

    @property
    def is_contained(self) -> bool:
        """Whether a rung holds, and no case got out of one."""
        return any(one.contained for one in self.results) and all(one.contained is not False for one in self.results)

    def counts(self) -> dict[str, Any]:
        """Return the counts of each rung, and what could not be run, as plain values."""
        found: dict[str, dict[str, int]] = {}
        for one in self.results:
            of_rung = found.setdefault(one.rung.value, {"contained": 0, "escaped": 0, "not_run": 0})
            of_rung[{True: "contained", False: "escaped", None: "not_run"}[one.contained]] += 1
        not_run = [{"case": one.case, "rung": one.rung.value, "why": one.detail} for one in self._not_run()]
        return {
            "rungs": found,
            "not_run": not_run,
            "refused_rungs": self.refused,
            "as_root": hasattr(os, "getuid") and os.getuid() == 0,
        }

    def _not_run(self) -> Iterator[EscapeResult]:
        return (one for one in self.results if one.contained is None)

    def in_lines(self) -> list[str]:
        """Lay them out as a table for a person: a case a line, a rung a column, and what it said where it got out."""
        held = list(dict.fromkeys(one.rung for one in self.results))
        by_name = {(one.case, one.rung): one for one in self.results}
        width = max((len(one.case) for one in self.results), default=0)
        lines = ["  ".join((f"{'case':{width}}", *(f"{rung:9}" for rung in held))).rstrip()] if held else []
        for name in dict.fromkeys(one.case for one in self.results):
            ended = [by_name[name, rung] for rung in held]
            lines.append("  ".join((f"{name:{width}}", *(f"{_MARKS[one.contained]:9}" for one in ended))).rstrip())
            lines += [f"    {one.rung}: {one_line(one.detail)}" for one in ended if one.contained is False]
        for reason, names in self._reasons().items():
            lines.append(f"not run: {', '.join(dict.fromkeys(names))}: {one_line(reason)}")
        lines += [f"sandbox {rung} was not tried: {one_line(why)}" for rung, why in self.refused.items()]
        for rung, count in self.counts()["rungs"].items():
            lines.append(
                f"{rung}: {count['contained']} contained, {count['escaped']} ESCAPED, {count['not_run']} not run"
            )
        return lines or ["no sandbox is known for this system"]

    def _reasons(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for one in self._not_run():
            reasons.setdefault(one.detail, []).append(one.case)
        return reasons


def run_escape_test(settings: AgentSettings, only: Rung | None, case: str | None, tell: OnEscapeResult) -> EscapeReport:
    """Run the cases, or the one of that name, on each rung that holds here, or on that one.

    ``tell`` hears each result when it is there. Raises: BadSettings for a name that no case has.
    """
    cases = [one for one in CASES if case in (None, one.name)]
    if not cases:
        raise BadSettings(f"no case is called {case}; they are {', '.join(one.name for one in CASES)}")
    keep_descriptors()
    probe = Probe(Path.home(), Lending(settings.cpu_cores, settings.max_ram))
    try:
        return asyncio.run(_run(settings, probe, only, cases, tell))
    finally:
        probe.close()


async def _run(
    settings: AgentSettings, probe: Probe, only: Rung | None, cases: Sequence[EscapeCase], tell: OnEscapeResult
) -> EscapeReport:
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = HomeFolder(settings.home.absolute())
    results: list[EscapeResult] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="escape-test-", dir=home.root) as folder:
        try:
            policy = task_policy(home, probe, _EXECUTOR)
        except SandboxUnavailable as error:
            return EscapeReport((), {Rung.STRICT.value: error.message})
        done: set[Rung] = set()
        for confinement in rungs(policy):
            if confinement.rung in done or only not in (None, confinement.rung):
                continue
            proof = await prove(confinement, Path(folder), environment_of(probe))
            if not proof.holds:
                refused[confinement.rung.value] = proof.in_words()
                continue
            done.add(confinement.rung)
            refused.pop(confinement.rung.value, None)  # another bubblewrap did not work; this one does
            for one in cases:
                results.append(await _tried(confinement, one, Path(folder), probe))
                tell(results[-1])
    return EscapeReport(tuple(results), refused)


async def _tried(confinement: Confinement, case: EscapeCase, folder: Path, probe: Probe) -> EscapeResult:
    try:
        return await run_case(confinement, case, folder, environment_of(probe))
    except OSError as error:
        return EscapeResult(case.name, confinement.rung, None, f"it could not be started here: {error}")


def as_envelope(result: EscapeResult) -> dict[str, Any]:
    """Return a result as plain values."""
    return asdict(result) | {"rung": result.rung.value}
