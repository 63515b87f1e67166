"""Opens the kernel's settings for writing: a program to run at a crash, interrupts, its own memory."""

import os
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import escaped

interrupts = sorted(str(path) for path in Path("/proc/irq").glob("*/smp_affinity"))[:1]
settings = ("kernel/core_pattern", "kernel/modprobe", "vm/overcommit_memory", "fs/suid_dumpable")
for path in (*(f"/proc/sys/{name}" for name in settings), *interrupts, "/proc/sysrq-trigger", "/proc/mtrr"):
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY))
        escaped(f"opened {path} for writing")
for name in ("kcore", "kmsg"):
    with suppress(OSError):
        os.close(os.open(f"/proc/{name}", os.O_RDONLY | os.O_NONBLOCK))
        escaped(f"opened /proc/{name}")
with suppress(OSError):
    Path("/proc/self/oom_score_adj").write_text("-1000")
    escaped("will be the last that the system takes when memory runs out")
