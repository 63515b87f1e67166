"""Hours of the week: what is read, when they hold, and when that changes, against a clock looked at each minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.owner.hours import next_midnight, parse_hours

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
BERLIN, NEW_YORK, LORD_HOWE = (ZoneInfo(name) for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe"))
"""Lord Howe's clocks change by half an hour."""
MONDAY = datetime(2026, 11, 23)


def wall(zone):
    return lambda moment: datetime.fromtimestamp(moment, zone).replace(tzinfo=None)


def at(text, zone=BERLIN, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


clock_times = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
spans = st.tuples(clock_times, clock_times).filter(lambda pair: pair[0] != pair[1]).map("-".join) | st.just("all")
day_words = st.sampled_from(DAYS) | st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)).map("-".join)
entries = st.tuples(st.lists(day_words, max_size=2).map(" ".join), spans).map(" ".join)
texts = st.lists(entries, min_size=1, max_size=3).map(", ".join)


def by_the_words(text, moment):
    """The meaning of the words, written down a second time: a span belongs to the day on which it begins."""
    for entry in text.split(","):
        *words, span = entry.split()
        days = set(range(7)) if not words else set()
        for word in words:
            first, _, last = word.partition("-")
            day = DAYS.index(first)
            days.add(day)
            while DAYS[day] != (last or first):
                day = (day + 1) % 7
                days.add(day)
        start, _, stop = ("00:00-24:00" if span == "all" else span).partition("-")
        clock = f"{moment:%H:%M}"
        today, yesterday = moment.weekday() in days, (moment.weekday() - 1) % 7 in days
        if start < stop and today and start <= clock < stop:
            return True
        if start > stop and ((today and clock >= start) or (yesterday and clock < stop)):
            return True
    return False


@given(text=texts, minute=st.integers(0, 7 * 24 * 60 - 1))
def test_they_hold_when_their_words_say_so(text, minute):
    moment = MONDAY + timedelta(minutes=minute)
    assert parse_hours(text).hold_at(moment) == by_the_words(text, moment)


@settings(max_examples=60)
@given(
    text=texts,
    zone=st.sampled_from((BERLIN, NEW_YORK, LORD_HOWE)),
    now=st.sampled_from((at("2026-03-28"), at("2026-10-24"), at("2026-11-01T00:30"), at("2026-04-04T12:00"))),
    minutes=st.integers(0, 2 * 24 * 60),
)
def test_the_next_change_is_the_first_minute_at_which_it_is_otherwise(text, zone, now, minutes):
    hours, local = parse_hours(text), wall(zone)
    now += 60 * minutes
    holds = hours.hold_at(local(now))
    later = (now + 60 * ahead for ahead in range(1, 8 * 24 * 60))
    assert hours.next_change(now, local) == next((m for m in later if hours.hold_at(local(m)) != holds), None)


@pytest.mark.parametrize(
    ("text", "now", "change"),
    [
        ("22:00-07:00", at("2026-11-27T18:00"), at("2026-11-27T22:00")),
        ("22:00-07:00", at("2026-11-27T23:00:30"), at("2026-11-28T07:00")),
        ("mon-fri 22:00-07:00", at("2026-11-28T08:00"), at("2026-11-30T22:00")),  # over the weekend
        ("22:00-07:00", at("2026-03-28T23:00"), at("2026-03-29T07:00")),  # a night of eight hours
        ("01:30-02:30", at("2026-03-29T01:45"), at("2026-03-29T03:00")),  # 02:00 to 03:00 is left out
        ("01:30-02:30", at("2026-10-25T02:15"), at("2026-10-25T02:30")),
        ("01:30-02:30", at("2026-10-25T02:45"), at("2026-10-25T02:00", fold=1)),  # 02:00 comes twice
        ("02:10-02:50", at("2026-03-28T03:00"), at("2026-03-30T02:10")),  # a day without it
        ("all", at("2026-03-28T03:00"), None),
        ("", at("2026-03-28T03:00"), None),
    ],
)
def test_changes_in_berlin(text, now, change):
    assert parse_hours(text).next_change(now, wall(BERLIN)) == change


@pytest.mark.parametrize(
    ("now", "hours"), [("2026-10-25T00:00", 25), ("2026-03-29T00:00", 23), ("2026-11-27T18:30", 5.5)]
)
def test_a_day_ends_at_midnight_by_the_wall(now, hours):
    assert next_midnight(at(now), wall(BERLIN)) - at(now) == hours * 3600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("22-7", "no span"),
        ("25:00-07:00", "no clock"),
        ("22:60-07:00", "no clock"),
        ("22:00-24:01", "no clock"),
        ("22:00-22:00", "`all`"),
        ("mo 22:00-07:00", "no day"),
        ("mon-fry all", "no day"),
        ("mon-fri", "no span"),
        ("22:00-07:00,", "between two commas"),
    ],
)
def test_what_cannot_be_read_says_how_to_write_it(text, said):
    with pytest.raises(ValueError, match=said):
        parse_hours(text)


def test_case_and_spaces_do_not_matter():
    assert parse_hours("  Mon-Fri  22:00-7:00 ,SAT-sun all ") == parse_hours("mon-fri 22:00-07:00, sat sun all")


def test_sunday_s_night_goes_on_on_monday():
    hours = parse_hours("sun 23:00-01:00")
    assert hours.hold_at(MONDAY + timedelta(minutes=30))
    assert not hours.hold_at(MONDAY + timedelta(days=1, minutes=30))


def test_the_system_s_own_zone_is_used_as_it_is():
    now = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
    change = parse_hours("00:00-00:01").next_change(now, datetime.fromtimestamp)
    assert datetime.fromtimestamp(change).strftime("%H:%M:%S") == "00:00:00"
