"""What holds for the whole suite."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog
from coverage import Coverage
from hypothesis import settings

from tests.side_by_side import pytest_xdist_make_scheduler  # noqa: F401  # a hook

# Before torch is imported, and for all processes that tests start: beside four files' tests a second thread of OpenMP
# waits for a core with the first one spinning, and a step of a tiny model takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("any machine", deadline=None)  # a slow machine is no defect
settings.load_profile("any machine")

# Structlog's own default draws each local variable of a traceback: seconds of an event loop, for a state of the farm's.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background: what it starts must hear a Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


LEAVING_SECONDS = 10.0
OWNED = frozenset({"script", "ledger-writer", "snapshot-writer", "update-writer"})
"""Threads of the farm's that end with their owners, if those are ended; others are idle ones of pools."""


@pytest.fixture(autouse=True, scope="module")
def _owned_threads_end() -> Iterator[None]:
    """Have no such thread outlive its file: what hangs later would seem to be its doing, and its memory stays."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread.name in OWNED and thread not in before]
    for thread in left:
        thread.join(LEAVING_SECONDS)
    assert not [thread.name for thread in left if thread.is_alive()], "threads that outlive their file"


SAVE_SECONDS = 30.0
_saved_at = [0.0]


@pytest.fixture(autouse=True, scope="module")
def _measured_to_its_end() -> Iterator[None]:
    """Have no file end the tracing of its process: coverage would see nothing of the files after it.

    What was reached is written twice a minute: a worker that a hung test ends takes no more than that along.
    """
    before = sys.gettrace()
    yield
    assert sys.gettrace() is before, "tracing that was not put back"
    if (measuring := Coverage.current()) is not None and time.monotonic() - _saved_at[0] > SAVE_SECONDS:
        measuring.save()
        _saved_at[0] = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes seconds after what takes milliseconds, so that a simple mistake shows at once."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Write the figures of coverage now: xdist kills a worker that takes ten seconds to end, and they would be lost."""
    if (measuring := Coverage.current()) is not None:
        measuring.save()
