"""Jobs that must run one after the other, on whichever thread of a shared pool is free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class SerialWorker:
    """Runs its jobs in order, never two at once, and holds no thread while it has none. Jobs must not raise."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job after all that were submitted before. Returns at once."""
        with self._lock:
            self._jobs.append(job)
            if self._busy:
                return
            self._busy = True
        self._pool.submit(self._drain)

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._busy = False
                    return
                job = self._jobs.popleft()
            job()
