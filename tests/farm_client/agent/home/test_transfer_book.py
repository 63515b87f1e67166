"""What moved today is counted over restarts, and a day ends at the machine's own midnight."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.home.transfer_book import TransferBook


class Calendar:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 27, 23, 0).astimezone()

    def __call__(self) -> datetime:
        return self.now


def test_the_count_goes_on_after_a_restart_and_begins_anew_at_midnight(tmp_path: Path) -> None:
    calendar = Calendar()
    first = TransferBook(tmp_path / "transfers.json", calendar)
    for total in (100, 100, 250):
        first.count(total)
    first.save()
    second = TransferBook(tmp_path / "transfers.json", calendar)
    second.count(50)
    assert second.moved_today() == 300
    calendar.now += timedelta(hours=2)
    assert second.moved_today() == 0
    second.count(80)
    assert second.moved_today() == 30


def test_a_count_is_kept_without_a_goodbye(tmp_path: Path) -> None:
    TransferBook(tmp_path / "transfers.json").count(70)
    assert TransferBook(tmp_path / "transfers.json").moved_today() == 70


@given(st.lists(st.integers(0, 10**9)))
def test_each_byte_counts_once(totals: list[int]) -> None:
    book = TransferBook(Path("/nonexistent/transfers.json"), Calendar())
    for total in sorted(totals):
        book.count(total)
    assert book.moved_today() == max(totals, default=0)


@pytest.mark.parametrize("text", ["", "{", '{"day": "2026-11-27", "moved_bytes": -1}'])
def test_a_damaged_count_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "transfers.json").write_text(text)
    assert TransferBook(tmp_path / "transfers.json", Calendar()).moved_today() == 0
