"""Child processes that a benchmark starts and always ends, by their id."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

STOP_SECONDS: Final = 15.0


class BenchmarkError(Exception):
    """The measurement could not be taken; the message says what happened and where the log is."""


class Child:
    """A running program. Its stderr goes to ``log``; its stdout is a pipe for those who want to read it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._name = " ".join(command[:2])
        with log.open("ab") as sink:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def read_line(self) -> str:
        """Wait for the next line of stdout.

        Raises: BenchmarkError with the end of the log if the program ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self._name} ended early; its log says:\n{self.log_tail()}")
        return line

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ask the program to end, and kill it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
