"""The cases of the escape suite: which protection each is against, and how long it may take."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sandbox.protection import Protection

_FOLDER: Final = Path(__file__).parent / "escapes"
_HANGS_SECONDS: Final = 0.8
"""Of a case that only an end from outside ends."""


@dataclass(frozen=True, slots=True)
class EscapeCase:
    """One hostile script. ``against``: the protection that holds it; None for what holds without one, such as its end.

    ``seconds`` is when it is ended; ``needs`` is part of the name of a device node that the machine must have.
    """

    name: str
    against: Protection | None = None
    seconds: float = 8.0
    needs: str = ""

    @property
    def tries(self) -> str:
        """What it tries, in a sentence."""
        return (ast.get_docstring(ast.parse((_FOLDER / f"{self.name}.py").read_text())) or "").splitlines()[0]


def _against(protection: Protection | None, names: str, seconds: float = 8.0) -> tuple[EscapeCase, ...]:
    return tuple(EscapeCase(name, protection, seconds) for name in names.split())


CASES: Final = (
    *_against(
        Protection.FILES,
        "read_secret list_home read_through_symlink read_through_proc read_by_climbing hard_link_secret "
        "read_system_secrets write_beside_secret delete_secret change_attributes watch_home",
    ),
    *_against(Protection.READ_ONLY, "change_system change_given change_kernel"),
    *_against(Protection.DEVICES, "make_device open_devices"),
    EscapeCase("open_gpu", Protection.DEVICES, needs="nvidia"),
    *_against(Protection.NETWORK, "connect_loopback send_datagram connect_out connect_unix connect_abstract"),
    *_against(Protection.PROCESSES, "read_other_environment signal_other slow_other trace_other read_other_memory"),
    *_against(Protection.IPC, "shared_memory_of_other"),
    *_against(Protection.HOST_NAME, "read_host_name"),
    *_against(Protection.CGROUPS, "read_cgroup see_processes"),
    *_against(Protection.ENVIRONMENT, "read_variable"),
    *_against(Protection.DESCRIPTORS, "inherited_descriptors"),
    *_against(Protection.CAPABILITIES, "set_uid raise_limits set_host_name set_clock"),
    *_against(Protection.NEW_NAMESPACES, "new_namespaces"),
    *_against(Protection.SYSTEM_CALLS, "mount kernel_doors other_abi raw_sockets trace_agent type_into_terminal"),
    *_against(Protection.FORKS, "fork_bomb orphan_bomb thread_bomb"),
    *_against(
        Protection.MEMORY,
        "allocate_thirty_gigabytes memory_together memory_of_orphans memory_unreadable memory_shared memory_in_files",
    ),
    *_against(Protection.SIZED_TMP, "fill_tmp"),
    *_against(Protection.SIZED_SHM, "fill_shm"),
    *_against(Protection.FILE_SIZE, "large_file fill_disk fill_hidden_folder fill_deep_folder fill_unlinked"),
    *_against(Protection.FILE_SIZE, "fill_inodes"),
    *_against(None, "unremovable_files daemon nameless_daemon segfault abort_in_exit"),
    *_against(None, "kill_supervisor hang_in_c stop_itself thread_outlives print_endlessly", _HANGS_SECONDS),
)
"""All that run in a bare Python. What needs an agent around is in ``farm_client.agent.escape_test``."""
