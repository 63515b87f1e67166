"""Which signals to handle: those that the system has; those that were ignored when the process started stay ignored.

``nohup`` ignores the hang-up, and a shell without job control the interrupt of what it runs in the background; a
handler of ours would undo that.
"""

from __future__ import annotations

import signal


def existing(*names: str) -> tuple[signal.Signals, ...]:
    """Return those of the named signals that this system has: Windows has no SIGHUP."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


def heeded(*numbers: signal.Signals) -> tuple[signal.Signals, ...]:
    """Return those of the signals that this process does not ignore."""
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)
