"""``python -m tests.simulation --seeds 0-5000 --jobs 2``, and ``--seed N --trace`` to see one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool

from tests.simulation.violation import Violation
from tests.simulation.world import run_seed

_CHUNK = 20


def find_violation(seed: int) -> tuple[int, str | None, int]:
    """Run one seed; return it with what broke, if anything did, and the number of events."""
    try:
        return seed, None, run_seed(seed).events
    except Violation as violation:
        return seed, str(violation), 0


def replay_command(seed: int) -> str:
    """Return what a person types to see a seed fail."""
    return f"python -m tests.simulation --seed {seed} --trace"


def _outcomes(seeds: range, jobs: int) -> Iterator[tuple[int, str | None, int]]:
    if jobs == 1:
        yield from map(find_violation, seeds)
        return
    with Pool(jobs) as pool:
        yield from pool.imap_unordered(find_violation, seeds, _CHUNK)


def _sweep(seeds: range, jobs: int) -> int:
    began, events, failures = time.perf_counter(), 0, 0
    for seed, broken, count in _outcomes(seeds, jobs):
        events += count
        if broken is not None:
            failures += 1
            print(f"seed {seed}: {broken}\n    replay it with: {replay_command(seed)}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(seeds)} seeds, {events} events in {seconds:.1f} s: {failures or 'none'} failed")
    return 1 if failures else 0


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or int(first) + 1))


def main() -> int:
    """Run seeds; return 1 if one of them finds a broken promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(2000), metavar="FIRST-END", help="END is not run")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    if arguments.seed is None:
        return _sweep(arguments.seeds, arguments.jobs)
    try:
        world = run_seed(arguments.seed, print if arguments.trace else None)
    except Violation as violation:
        print(f"broken: {violation}", file=sys.stderr)
        return 1
    print(f"seed {arguments.seed} holds: {world.events} events in {world.agenda.now:.1f} simulated seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
