"""Knocks at what of the kernel has had most holes: bpf, io_uring, perf, userfaultfd, keys, modules, file handles."""

from farm_client.sandbox.escape_attempt import escaped, is_reached

DOORS = {
    "bpf": ((321, 280), (0, 0, 0)),
    "io_uring_setup": ((425, 425), (1, 0)),
    "perf_event_open": ((298, 241), (0, 0, -1, -1, 0)),
    "userfaultfd": ((323, 282), (1 << 20,)),
    "keyctl": ((250, 219), (99, 0, 0)),
    "add_key": ((248, 217), (0, 0, 0, 0, 0)),
    "init_module": ((175, 105), (0, 0, 0)),
    "open_by_handle_at": ((304, 265), (-1, 0, 0)),
    "setns": ((308, 268), (-1, 0)),
    "pivot_root": ((155, 41), (0, 0)),
    "swapon": ((167, 224), (0, 0)),
    "kexec_load": ((246, 104), (0, 1 << 20, 0, 0)),
    "fanotify_init": ((300, 262), (-1, 0)),
    "memfd_secret": ((447, 447), (1 << 20,)),
}
for name, (numbers, arguments) in DOORS.items():
    if is_reached(numbers, *arguments):
        escaped(f"called {name}")
