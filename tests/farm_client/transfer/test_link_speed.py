"""The speed of a link, told from what moves over it."""

from __future__ import annotations

from farm_client.transfer.link_speed import KEPT, LEAST_BYTES, LinkSpeed

MB = 1_000_000


class Line:
    """A link whose clock stands still but for what is said."""

    def __init__(self) -> None:
        self.now = 100.0
        self.speed = LinkSpeed(lambda: self.now)

    def spell(self, size_bytes: int, seconds: float) -> None:
        with self.speed.moving():
            self.speed.moved(size_bytes)
            self.now += seconds


def test_nothing_is_known_before_a_spell_has_ended():
    line = Line()
    assert line.speed.bytes_per_second == 0.0
    with line.speed.moving():
        line.speed.moved(MB)
        line.now += 1
        assert line.speed.bytes_per_second == 0.0
    assert line.speed.bytes_per_second == MB


def test_transfers_that_share_a_link_are_one_spell():
    line = Line()
    with line.speed.moving():
        with line.speed.moving():
            line.now += 1
            line.speed.moved(MB)
        line.now += 1
        line.speed.moved(3 * MB)
    assert line.speed.bytes_per_second == 2 * MB


def test_pauses_between_spells_count_for_nothing():
    line = Line()
    line.spell(2 * MB, 1)
    line.now += 3600
    line.spell(2 * MB, 1)
    assert line.speed.bytes_per_second == 2 * MB


def test_a_few_bytes_say_nothing_of_the_speed():
    line = Line()
    line.spell(LEAST_BYTES - 1, 5)
    assert line.speed.bytes_per_second == 0.0
    line.spell(LEAST_BYTES, 1)
    assert line.speed.bytes_per_second == LEAST_BYTES


def test_what_a_spell_moved_is_not_counted_for_the_next():
    line = Line()
    line.spell(10 * MB, 1)
    line.spell(100, 1)
    line.spell(MB, 1)
    assert line.speed.bytes_per_second == (10 * MB + MB) / 2


def test_the_median_bears_some_bad_spells_and_old_ones_are_forgotten():
    line = Line()
    for seconds in (1, 1, 50, 1):
        line.spell(MB, seconds)
    assert line.speed.bytes_per_second == MB
    for _ in range(KEPT):
        line.spell(MB, 4)
    assert line.speed.bytes_per_second == MB / 4


def test_a_transfer_that_fails_ends_its_spell():
    line = Line()
    try:
        with line.speed.moving():
            line.speed.moved(MB)
            line.now += 2
            raise OSError
    except OSError:
        pass
    line.spell(MB, 2)
    assert line.speed.bytes_per_second == MB / 2


def test_a_clock_that_stands_still_gives_no_speed():
    line = Line()
    line.spell(MB, 0)
    assert line.speed.bytes_per_second == 0.0


def test_the_owners_limit_is_not_taken_for_the_link():
    line = Line()
    line.spell(8 * MB, 1)
    line.speed.limited_to(MB)
    for _ in range(2 * KEPT):
        with line.speed.moving():
            line.speed.moved(MB)
            line.speed.held_back()
            line.now += 1.25
    assert line.speed.link_bytes_per_second == 8 * MB
    assert line.speed.bytes_per_second == MB
    line.speed.limited_to(20 * MB)
    assert line.speed.bytes_per_second == 8 * MB
    line.speed.limited_to(None)
    assert line.speed.bytes_per_second == 8 * MB


def test_under_a_limit_from_the_start_what_comes_about_is_counted_on():
    line = Line()
    line.speed.limited_to(MB)
    with line.speed.moving():
        line.speed.moved(MB)
        line.speed.held_back()
        line.now += 2
    assert (line.speed.bytes_per_second, line.speed.link_bytes_per_second) == (MB / 2, 0)
    line.speed.limited_to(None)  # of the link nothing is known
    assert line.speed.bytes_per_second == 0


def test_a_link_slower_than_its_limit_is_measured_all_the_same():
    line = Line()
    line.speed.limited_to(10 * MB)
    line.spell(2 * MB, 1)
    assert line.speed.link_bytes_per_second == line.speed.bytes_per_second == 2 * MB


def test_a_spell_in_which_the_limit_changed_says_nothing_of_the_link():
    line = Line()
    with line.speed.moving():
        line.speed.moved(MB)
        line.now += 1
        line.speed.limited_to(100)
    assert line.speed.link_bytes_per_second == 0
