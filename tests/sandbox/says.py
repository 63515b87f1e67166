"""Runs inside of a sandbox: says on a descriptor who it is there, and ends with an exit code or by a signal.

python -m tests.sandbox.says DESCRIPTOR CODE
"""

from __future__ import annotations

import json
import os
import sys

OF_PODMAN = {"HOSTNAME", "TERM", "container"}


def main(descriptor: int, code: int) -> None:
    """Say its user, which variables of Podman's it has, and whether its home is where it is; end."""
    who = [os.getuid(), sorted(set(os.environ) & OF_PODMAN), os.environ["HOME"] == os.getcwd()]  # noqa: PTH109
    os.write(descriptor, json.dumps(who).encode())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
