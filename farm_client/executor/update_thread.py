"""Updates on their way out of an executor that trains on: encoded, hashed and written by a thread beside the steps."""

from __future__ import annotations

import threading
from collections.abc import Callable


class UpdateThread:
    """One thread's work at a time: whoever hands over the next waits for the last, so that none pile up."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Wait until what was handed over is written and reported."""
        if self._thread is not None:
            self._thread.join()

    def start(self, work: Callable[[], None]) -> None:
        """Have ``work``, which reports what becomes of it and raises nothing, done meanwhile."""
        self.wait()
        # A daemon: an executor whose agent is gone ends at once.
        self._thread = threading.Thread(target=work, name="update-writer", daemon=True)
        self._thread.start()
