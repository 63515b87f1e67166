"""Numbers in sentences read as people say them."""

from __future__ import annotations

import pytest

from protocol.wording import ClientNames, counted, flops_text, sized


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 results"), (1, "1 result"), (2, "2 results"), (12_345, "12,345 results")]
)
def test_one_is_no_plural(number: int, said: str) -> None:
    assert counted(number, "result") == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (45_909_078_016, "42.8 GiB"),
        (9e17, "818545.2 TiB"),
        (10**400, "8388608.0 TiB"),
    ],
)
def test_sizes_have_units(size_bytes: float, said: str) -> None:
    assert sized(size_bytes) == said


def test_a_name_that_two_have_is_shown_with_an_id_from_when_both_are_known() -> None:
    names = ClientNames([("1a2b3c4d", "box")])
    assert names.shown("1a2b3c4d", "box") == "box"
    assert names.shown("9f8e7d6c", "box") == "box (9f8e7d)"
    assert names.shown("1a2b3c4d", "box") == "box (1a2b3c)"
    assert names.shown("5a5a5a5a", "") == "5a5a5a5a"


@pytest.mark.parametrize(
    ("flops", "said"),
    [
        (0, "-"),
        (999, "999 FLOP"),
        (1000, "1.0 kFLOP"),
        (999_949, "999.9 kFLOP"),
        (999_999, "1.0 MFLOP"),
        (1_234_567_890_123_456, "1.2 PFLOP"),
        (10**26, "100.0 YFLOP"),
        (10**30, "1,000,000.0 YFLOP"),
    ],
)
def test_flops_have_units(flops: int, said: str) -> None:
    assert flops_text(flops) == said
