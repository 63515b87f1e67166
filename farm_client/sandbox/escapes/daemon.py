"""Starts daemons by each way that there is, ends, and hopes that they live on."""

import os
import signal
from contextlib import suppress

started, starting = os.pipe()
for way in (os.setsid, lambda: os.setpgid(0, 0), lambda: None):
    if os.fork() == 0:
        with suppress(OSError):
            way()
        if os.fork() == 0:
            for ignored in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(ignored, signal.SIG_IGN)
            os.close(1)
            os.close(2)
            os.close(starting)
            signal.pause()
        os._exit(0)
os.close(starting)
os.read(started, 1)
