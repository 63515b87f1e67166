"""Watches the agent's folder for changes, by inotify."""

import ctypes
import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped, libc

watcher = libc.inotify_init1(0)
if libc.inotify_add_watch(watcher, str(Path(TARGETS.secret_file).parent).encode(), 0xFFF) < 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
if Path(TARGETS.secret_file).exists():
    escaped("watches the agent's folder")
