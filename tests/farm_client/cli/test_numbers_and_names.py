"""Numbers as people read them, and what a person may call a task or a client."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sdk.references import find_client, find_round, find_task
from farm_client.sdk.watching.formatting import (
    NOTHING,
    format_age,
    format_metrics,
    format_rate,
    format_seconds,
    format_short_age,
    format_value,
    sparkline,
)
from protocol.errors import NotFound
from protocol.rest import ClientView, TaskView
from tests.farm_client.cli.fake_farm import make_client, make_task

_finite = st.floats(allow_nan=False, allow_infinity=False)


class TestDurations:
    """In the units that a person would use."""

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "0.0 s"),
            (4.21, "4.2 s"),
            (59.9, "59.9 s"),
            (60, "1 min 00 s"),
            (187, "3 min 07 s"),
            (3599.9, "59 min 59 s"),
            (3600, "1 h 00 min"),
            (18_720, "5 h 12 min"),
            (86_400, "1 d 0 h"),
            (183_600, "2 d 3 h"),
        ],
    )
    def test_a_duration(self, seconds: float, words: str) -> None:
        assert format_seconds(seconds) == words

    @given(st.floats(0, 1e9))
    def test_any_duration_has_no_more_than_two_units(self, seconds: float) -> None:
        assert re.fullmatch(r"[\d.]+ \w+( [\d]+ \w+)?", format_seconds(seconds))

    @pytest.mark.parametrize(
        ("age", "words"),
        [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (172_800, "2 d")],
    )
    def test_a_short_age_is_in_its_largest_unit(self, age: float, words: str) -> None:
        assert format_short_age(1e9, 1e9 + age) == words

    @pytest.mark.parametrize("never", [None, 0, 0.0])
    def test_what_never_was_has_no_age(self, never: float | None) -> None:
        assert format_age(never, 5.0) == format_short_age(never, 5.0) == NOTHING

    def test_a_clock_that_is_behind_the_farms_makes_no_negative_age(self) -> None:
        assert format_age(100.0, 40.0) == "0.0 s ago"
        assert format_short_age(100.0, 40.0) == "0 s"


@pytest.mark.parametrize(
    ("value", "words"), [(None, "-"), (0.5, "0.5"), (0.123456, "0.1235"), (123456.0, "1.235e+05"), (math.nan, "nan")]
)
def test_a_value_has_four_digits(value: float | None, words: str) -> None:
    assert format_value(value) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, "-"),
        (0.24, "0.2 samples/s"),
        (99.94, "99.9 samples/s"),
        (100, "100 samples/s"),
        (12345.6, "12,346 samples/s"),
    ],
)
def test_a_rate(rate: float, words: str) -> None:
    assert format_rate(rate) == words


def test_metrics_stand_in_the_order_of_their_names() -> None:
    assert format_metrics({"loss": 0.1034, "accuracy": 0.97123}) == "accuracy 0.9712  loss 0.1034"
    assert format_metrics({}) == ""


class TestSparkline:
    """A line of bars, the lowest value lowest."""

    @pytest.mark.parametrize(
        ("values", "bars"),
        [
            ([], ""),
            ([math.nan, math.inf], ""),
            ([5.0], "▁"),
            ([5.0, 5.0], "▁▁"),
            ([0.0, 1.0], "▁█"),
            ([0.0, math.nan, 1.0], "▁█"),
            ([float(n) for n in range(8)], "▁▂▃▄▅▆▇█"),
            ([-1.7e308, 0.0, 1.7e308], "▁▅█"),  # their difference is no number any more
        ],
    )
    def test_bars_of_values(self, values: list[float], bars: str) -> None:
        assert sparkline(values, 80) == bars

    def test_the_last_are_shown(self) -> None:
        assert sparkline([9.0, 0.0, 1.0], 2) == "▁█"

    @given(st.lists(_finite, min_size=1, max_size=30), st.integers(1, 40))
    def test_whatever_is_measured_the_order_of_bars_is_that_of_values(self, values: list[float], width: int) -> None:
        bars = sparkline(values, width)
        shown = values[-width:]
        assert len(bars) == len(shown)
        assert all(bars[i] <= bars[j] for i, a in enumerate(shown) for j, b in enumerate(shown) if a <= b)
        if max(shown) / 2 - min(shown) / 2 > 1e-300:
            assert {"▁", "█"} <= set(bars)


def task(task_id: str, name: str = "digits", at: float = 0.0) -> TaskView:
    return make_task(task_id, name=name, submitted_at=at)


def client(client_id: str, name: str) -> ClientView:
    return make_client(name).model_copy(update={"client_id": client_id})


class TestFindTask:
    """An id before a name before a beginning of an id."""

    TASKS = (
        task("abcd2222", "runs2345", 5),
        task("runs2345", "abcd1111", 3),
        task("efgh3333", "x", 2),
        task("abcd1111", "runs2345", 1),
    )

    @pytest.mark.parametrize(
        ("reference", "found"),
        [
            ("abcd1111", "abcd1111"),  # the id, though another task has it for a name
            ("runs2345", "runs2345"),
            ("x", "efgh3333"),
            ("e", "efgh3333"),
            ("EFGH", "efgh3333"),
            ("abcd2", "abcd2222"),
        ],
    )
    def test_the_one_that_is_meant(self, reference: str, found: str) -> None:
        assert find_task(self.TASKS, reference).task_id == found

    def test_of_several_runs_of_one_thing_the_newest(self) -> None:
        tasks = [task("b", "digits", 9), task("c", "digits", 5), task("a", "digits", 1)]
        assert find_task(tasks, "digits").task_id == "b"

    def test_tasks_older_than_the_one_that_is_meant_are_not_asked_for(self) -> None:
        tasks = iter([task("a", "digits", 9), task("abcd1111", "x", 5), task("c", "digits", 1)])
        assert find_task(tasks, "digits").task_id == "a"
        assert find_task(tasks, "abcd1111").task_id == "abcd1111"
        assert next(tasks).task_id == "c"

    def test_the_beginning_of_several_lists_them(self) -> None:
        with pytest.raises(NotFound, match=r"several task ids \(abcd1111, abcd2222\)"):
            find_task(self.TASKS, "abcd")

    @pytest.mark.parametrize("reference", ["", "nothing", "abcd11111", " abcd1111"])
    def test_what_is_none_s_leads_to_the_list(self, reference: str) -> None:
        with pytest.raises(NotFound, match="`farm ls`"):
            find_task(self.TASKS, reference)

    @pytest.mark.parametrize(
        ("reference", "found", "number"),
        [
            ("abcd2@20", "abcd2222", 20),
            ("abcd2@0", "abcd2222", 0),
            ("abcd2", "abcd2222", None),
            ("x@007", "efgh3333", 7),
        ],
    )
    def test_a_round_of_it(self, reference: str, found: str, number: int | None) -> None:
        meant, round_number = find_round(self.TASKS, reference)
        assert (meant.task_id, round_number) == (found, number)

    def test_a_name_may_have_an_at_sign(self) -> None:
        tasks = [task("abcd1111", "ada@lab")]
        assert find_round(tasks, "ada@lab")[0].task_id == "abcd1111"
        assert find_round(tasks, "ada@lab@3") == (tasks[0], 3)

    @pytest.mark.parametrize("reference", ["x@", "x@-1", "x@1.5", "x@²", "@5", "x@" + "9" * 5000], ids=range(6))
    def test_what_is_no_round_is_part_of_a_name_that_nobody_has(self, reference: str) -> None:
        with pytest.raises(NotFound):
            find_round(self.TASKS, reference)


class TestFindClient:
    """Several clients of one name are several machines."""

    CLIENTS = (client("aa11", "lab"), client("aa22", "lab"), client("bb33", "home"), client("home", "attic"))

    @pytest.mark.parametrize(
        ("reference", "found"), [("aa11", "aa11"), ("home", "home"), ("attic", "home"), ("bb", "bb33"), ("aa2", "aa22")]
    )
    def test_the_one_that_is_meant(self, reference: str, found: str) -> None:
        assert find_client(self.CLIENTS, reference).client_id == found

    @pytest.mark.parametrize(
        ("reference", "words"),
        [
            ("lab", r"the name of several clients \(aa11, aa22\): give an id"),
            ("aa", r"the beginning of several client ids \(aa11, aa22\): give an id"),
            ("", "`farm clients`"),
            ("nobody", "`farm clients`"),
        ],
    )
    def test_who_is_meant_by_none_or_several_is_told(self, reference: str, words: str) -> None:
        with pytest.raises(NotFound, match=words):
            find_client(self.CLIENTS, reference)
