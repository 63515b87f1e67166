"""Reads its place in the machine's tree of control groups."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

lines = Path("/proc/self/cgroup").read_text().splitlines()
if TARGETS.cgroup and any(line.endswith(TARGETS.cgroup) for line in lines):
    escaped("read the machine's control group")
