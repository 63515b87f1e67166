"""Runs the escape suite on rungs of this machine, also as a program of another user's: one JSON line a result.

python -m tests.sandbox.suite HOME
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from farm_client.sandbox.confinement import Confinement, Unconfined
from farm_client.sandbox.escape_cases import CASES, EscapeCase
from farm_client.sandbox.escape_run import EscapeResult, run_case, small
from farm_client.sandbox.protection import Protection
from protocol.sandbox import Rung
from tests.farm_client.sandbox.machine import confinement, environment, policy

AT_ONCE = 4
RUNGS = (Rung.STRICT, Rung.LANDLOCK)


async def run_suite(
    home: Path,
    rung: Rung,
    without: frozenset[Protection] = frozenset(),
    names: Iterable[str] = (),
    cases: Iterable[EscapeCase] = CASES,
) -> dict[str, EscapeResult]:
    """Run cases on a rung, less some of its protections; on none, whatever that claims."""
    turns, wanted, how = asyncio.Semaphore(AT_ONCE), set(names), built(home, rung, without)

    async def run(case: EscapeCase) -> EscapeResult:
        async with turns:
            return await run_case(how, case, home, environment, all_claimed=rung is Rung.NONE)

    results = await asyncio.gather(*(run(case) for case in cases if not wanted or case.name in wanted))
    return {result.case: result for result in results}


def built(home: Path, rung: Rung, without: frozenset[Protection]) -> Confinement:
    what = policy((home,))
    if rung is Rung.NONE:
        return Unconfined(replace(what, bounds=small(what.bounds)))
    return confinement(rung, what, without)


if __name__ == "__main__":
    for one in RUNGS:
        for result in asyncio.run(run_suite(Path(sys.argv[1]), one)).values():
            print(json.dumps(asdict(result)))
