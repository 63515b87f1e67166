"""Dies in a handler that runs when it exits."""

import atexit
import os

atexit.register(os.abort)
