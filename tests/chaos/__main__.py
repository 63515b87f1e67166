"""``python -m tests.chaos --seconds 120 --seed N``: break everything, and see that no work is lost."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.farm import BenchmarkError
from protocol.errors import FarmError
from tests.chaos.chaos import run_chaos


def main() -> int:
    """Run chaos once; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long things break")
    parser.add_argument("--seed", type=int, default=None, help="what breaks when; a new one each time when not given")
    parser.add_argument("--folder", type=Path, help="an empty folder to keep logs and data in, for a look afterwards")
    given = parser.parse_args()
    # Whoever ends this ends its farm too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory(prefix="aifarm-chaos-", ignore_cleanup_errors=True) as temporary:
        return _run((given.folder or Path(temporary)).resolve(), given.seconds, seed)


def _run(folder: Path, seconds: float, seed: int) -> int:
    try:
        outcome = run_chaos(folder, seconds, seed, lambda line: print(line, flush=True))
    except (BenchmarkError, FarmError) as error:
        print(f"failed: {error}")
    else:
        print("did:", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in outcome.did.items()))
        verdict = outcome.verdict
        print(
            f"tasks: {verdict.completed} completed, {verdict.exact} compared with the undisturbed run, "
            f"largest relative difference {verdict.largest_difference:.1e}"
        )
        print(f"processes that ended by themselves: {len(outcome.ends)}")
        for complaint in outcome.complaints:
            print(f"wrong: {complaint}")
        if not outcome.complaints:
            print("no work was lost, and the books balance")
            return 0
    print(f"replay: python -m tests.chaos --seconds {seconds:g} --seed {seed}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
