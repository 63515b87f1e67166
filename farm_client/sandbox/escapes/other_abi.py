"""Makes system calls by the numbers of another ABI of the processor, which a careless filter takes for others."""

import os
import platform

from farm_client.sandbox.escape_attempt import escaped, libc

X32 = 0x40000000
if platform.machine() == "x86_64":
    pid = libc.syscall(X32 + 39)
    if pid == os.getpid():
        escaped("called the kernel by x32 numbers")
