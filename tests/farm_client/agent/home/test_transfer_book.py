"""What moved today is counted over restarts, and a day ends at the machine's own midnight."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.home.transfer_book import TransferBook, is_used_up, local_now, next_midnight


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


@pytest.mark.parametrize(
    ("moved", "quota", "up"), [(10**12, None, False), (9, 10, False), (10, 10, True), (0, 0, True)]
)
def test_the_quota_is_used_up_when_so_much_has_moved(moved: int, quota: int | None, up: bool) -> None:
    assert is_used_up(moved, quota) is up


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_day_in_which_the_clocks_go_back_has_25_hours(berlin: None) -> None:
    begin = datetime(2026, 10, 25, 0, 0).astimezone()
    assert next_midnight(begin).astimezone(UTC) - begin.astimezone(UTC) == timedelta(hours=25)
    assert next_midnight(local_now()) > local_now()
