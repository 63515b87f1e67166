"""Runs one case: ``farm_client.sandbox.escapes NAME``, under the lifeline of a sandbox.

What it prints first shows that the sandbox let it begin: a case that never ran was not contained by anything.
"""

import os
import runpy
import sys

from farm_client.sandbox.escape_attempt import BEGUN

name = sys.argv.pop(1)
os.write(1, f"{BEGUN}\n".encode())
runpy.run_module(f"farm_client.sandbox.escapes.{name}", run_name="__main__", alter_sys=True)
