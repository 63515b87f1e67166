"""How long a desktop is idle, as Linux's logind knows it from those desktops that report it.

It is asked through `loginctl show-session` without a session, which shows the properties of logind itself: of all
sessions together (systemd's org.freedesktop.login1, ``IdleHint`` and ``IdleSinceHint``, microseconds since 1970).
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

_COMMAND: Final = ("loginctl", "show-session", "--property=IdleHint", "--property=IdleSinceHint")
_ASK_SECONDS: Final = 5.0
_ASK_AGAIN_SECONDS: Final = 300.0
"""Where nobody answers: there is no logind, or not for this user."""
_ANSWER_SECONDS: Final = 10.0


class DesktopIdle:
    """Asks on a thread, now and then, so that nobody waits for the answer."""

    def __init__(self, command: Sequence[str] = _COMMAND, clock: Callable[[], float] = time.time) -> None:
        """``clock``: Unix seconds."""
        self._command = command
        self._clock = clock
        self._due = 0.0
        self._idle_since: float | None = None
        self._is_known = False
        self.asking: threading.Thread | None = None

    def seconds(self) -> float | None:
        """Return for how long nobody used a desktop, by the last answer; None while there is none."""
        now = self._clock()
        if now >= self._due and (self.asking is None or not self.asking.is_alive()):
            self.asking = threading.Thread(target=self._ask, name="desktop-idle", daemon=True)
            self.asking.start()
        if not self._is_known:
            return None
        return 0.0 if self._idle_since is None else max(0.0, now - self._idle_since)

    def _ask(self) -> None:
        try:
            done = subprocess.run(self._command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
            said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
            self._idle_since = int(said["IdleSinceHint"]) / 1e6 if said["IdleHint"] == "yes" else None
            self._is_known = True
        except (OSError, subprocess.SubprocessError, KeyError, ValueError):
            self._is_known = False
        self._due = self._clock() + (_ASK_SECONDS if self._is_known else _ASK_AGAIN_SECONDS)
