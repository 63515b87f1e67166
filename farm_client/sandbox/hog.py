"""Goes over a bound that the kernel does not hold, for the proof that measuring ends it.

    python -P -m farm_client.sandbox.lifeline AGENT_PID INSIDE farm_client.sandbox.hog forks|memory AMOUNT

Prints one line when it is there, and waits to be ended.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Start AMOUNT processes, or hold AMOUNT bytes."""
    what, amount = sys.argv[1], int(sys.argv[2])
    held = b""
    if what == "forks":
        for _ in range(amount):
            if os.fork() == 0:
                signal.pause()
                os._exit(0)
    else:
        held = b"\1" * amount
    sys.stdout.write(f"holds {amount}\n")
    sys.stdout.flush()
    signal.pause()
    del held


if __name__ == "__main__":
    main()
