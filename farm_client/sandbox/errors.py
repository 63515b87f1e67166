"""Errors of the sandbox.

FarmError
└── SandboxUnavailable      this machine cannot confine a process as it was asked to
"""

from __future__ import annotations

from protocol.errors import FarmError


class SandboxUnavailable(FarmError):
    """This machine cannot confine a task's code; join from a newer Linux, or run the agent in a virtual machine."""

    code = "sandbox_unavailable"
