"""What holds for the whole suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a slow machine is no defect
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes seconds after what takes milliseconds, so that a simple mistake shows at once."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
