"""Becomes uv, in a process that ends with the agent and yields to the volunteer's programs.

python -P -m farm_client.agent.environments.uv_process AGENT_PID UV [ARGUMENT ...]
"""

from __future__ import annotations

import os
import sys

from farm_client.sandbox.lifeline import be_a_good_guest, die_with


def main() -> None:
    """Replace this process by the command."""
    die_with(int(sys.argv[1]))
    be_a_good_guest()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  the command is the agent's


if __name__ == "__main__":
    main()
