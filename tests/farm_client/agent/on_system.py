"""Runs `farm-client` as another system would: `python on_system.py PLATFORM ARGUMENTS...`.

What others wrote is imported first, for the system that this is; then the names that the other system lacks are taken
away, and this project's modules come anew. It shows what this project asks of a system, not what that one answers.
"""

import getpass
import importlib
import os
import platform
import plistlib  # noqa: F401 - a library, so it comes before the names go
import signal
import socket
import sys
from xml.etree import ElementTree  # noqa: F401, ICN001

import psutil

MISSING = {
    "darwin": {
        "modules": (),
        "os": ("sched_getaffinity", "memfd_create", "pidfd_open", "posix_fallocate", "posix_fadvise", "O_TMPFILE"),
        "signal": (),
        "socket": ("SO_PEERCRED",),
    },
    "win32": {
        "modules": ("fcntl", "resource", "uvloop", "termios", "pty", "pwd", "grp"),
        "os": (
            *("sched_getaffinity", "memfd_create", "pidfd_open", "posix_fallocate", "posix_fadvise", "O_TMPFILE"),
            *("getuid", "geteuid", "getgid", "getegid", "getpgid", "getsid", "setsid", "killpg", "fork", "mkfifo"),
            *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "pread", "pwrite", "set_blocking", "nice"),
            *("fchmod", "chown", "statvfs", "getpriority", "setpriority", "uname", "preadv", "pwritev", "sendfile"),
        ),
        "signal": ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGCHLD", "SIGPIPE"),
        "socket": ("AF_UNIX", "SO_PEERCRED"),
    },
}


def become(name):
    """Take away what the system ``name`` lacks."""
    importlib.import_module("farm_client.agent.cli")
    for module in [module for module in sys.modules if module.split(".")[0] in ("farm_client", "protocol")]:
        del sys.modules[module]
    keep_what_libraries_ask_for()
    missing = MISSING[name]
    sys.modules.update(dict.fromkeys(missing["modules"]))
    for module in (os, signal, socket):
        for lacking in missing[module.__name__]:
            if hasattr(module, lacking):
                delattr(module, lacking)
    sys.platform = name


def keep_what_libraries_ask_for():
    """Answer others' code, which is that for the system that this is, once and for all."""
    usage, pair, family = psutil.disk_usage("/"), socket.socketpair, socket.AF_UNIX
    psutil.disk_usage = lambda _path: usage
    getpass.getuser = lambda: "bob"
    socket.socketpair = lambda *_arguments: pair(family)  # an event loop wakes itself by one
    platform.uname()  # which is remembered


def main():
    name, *arguments = sys.argv[1:]
    become(name)
    sys.argv = ["farm-client", *arguments]
    importlib.import_module("farm_client.agent.cli").main()


if __name__ == "__main__":
    main()
