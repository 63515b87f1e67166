"""What escape probes and hostile cases try to reach, as one argument of their command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Targets:
    """What the probes try, made for them by ``prove``. ``visible`` may be read, and must not be written.

    ``bounds`` are this sandbox's: ``memory_bytes``, ``processes``, ``file_bytes``, ``tmp_bytes``, ``shm_bytes``.
    """

    secret_file: str = ""
    secret_folders: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    given_file: str = ""
    scratch: str = ""
    tcp_port: int = 0
    unix_path: str = ""
    unix_abstract: str = ""
    decoy_pid: int = 0
    decoy_mark: str = ""
    """Part of the decoy's command line."""
    queue_key: int = 0
    """Of a System V shared memory segment."""
    host_name: str = ""
    cgroup: str = ""
    devices: tuple[str, ...] = ()
    """Device nodes that were not granted."""
    granted: tuple[str, ...] = ()
    """What of /dev was: the first step of each path in it."""
    variable: str = ""
    """Of the agent's environment, not to be passed on."""
    bounds: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """Protections that this rung does not claim."""
