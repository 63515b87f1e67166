"""Types a command into the terminal that the agent was started from."""

import errno
import fcntl

from farm_client.sandbox.escape_attempt import escaped

TYPE = 0x5412
try:
    fcntl.ioctl(0, TYPE, b"x")
    escaped("typed into a terminal")
except OSError as error:
    if error.errno == errno.ENOTTY:
        escaped("reached the kernel's way to type into terminals")
    raise
