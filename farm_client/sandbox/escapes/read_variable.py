"""Reads a variable of the agent's own environment, where tokens may be."""

import os

from farm_client.sandbox.escape_attempt import TARGETS, escaped

if TARGETS.variable in os.environ:
    escaped("read a variable of the agent")
