"""Numbers in sentences read as people say them."""

from __future__ import annotations

import pytest

from protocol.wording import counted, sized


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 results"), (1, "1 result"), (2, "2 results"), (12_345, "12,345 results")]
)
def test_one_is_no_plural(number: int, said: str) -> None:
    assert counted(number, "result") == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (45_909_078_016, "42.8 GiB"), (9e17, "818545.2 TiB")],
)
def test_sizes_have_units(size_bytes: float, said: str) -> None:
    assert sized(size_bytes) == said
