"""Starts a daemon as another program without a single variable, ends, and hopes that nobody finds it."""

import os
import signal
import sys

if os.fork() == 0:
    if os.fork() == 0:
        os.close(1)
        os.close(2)
        os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", "import signal; signal.pause()"], {})
    os._exit(0)
os.wait()
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.pause()
