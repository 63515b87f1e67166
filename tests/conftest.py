"""What holds for the whole suite."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a slow machine is no defect
settings.load_profile("any machine")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background: what it starts must hear a Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes seconds after what takes milliseconds, so that a simple mistake shows at once."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
