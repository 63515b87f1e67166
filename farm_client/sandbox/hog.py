"""Goes over a bound that the kernel does not hold, for the proof that measuring ends it.

    python -P -m farm_client.sandbox.lifeline AGENT_PID INSIDE farm_client.sandbox.hog forks|memory AMOUNT

Prints one line when it is there, and waits to be ended, or until nobody listens any more: an agent that was killed
while it started a sandbox ends nothing.
"""

from __future__ import annotations

import os
import select
import sys


def main() -> None:
    """Start AMOUNT processes, or hold AMOUNT bytes."""
    what, amount = sys.argv[1], int(sys.argv[2])
    held = b""
    if what == "forks":
        for _ in range(amount):
            if os.fork() == 0:
                _while_heard()
                os._exit(0)
    else:
        held = b"\1" * amount
    sys.stdout.write(f"holds {amount}\n")
    sys.stdout.flush()
    _while_heard()
    del held


def _while_heard() -> None:
    """Wait while somebody holds the other end of the output's pipe."""
    heard = select.poll()
    heard.register(sys.stdout.fileno(), 0)
    heard.poll()


if __name__ == "__main__":
    main()
