"""What is shown above an error's one line."""

from __future__ import annotations

from farm_client.cli.localfarm import DaemonFailed
from farm_client.sdk.check import CheckFailed


def details_of(error: BaseException, *, debug: bool) -> str:
    """Return the lines that help with this error: a dead process's log, or (``debug``) the researcher's traceback."""
    if isinstance(error, DaemonFailed):
        return error.last_words
    if isinstance(error, CheckFailed) and debug:
        return "\n".join(part for part in (error.output.rstrip(), (error.trace or "").rstrip()) if part)
    return ""
