"""The farm's links in short: the slow ones count, and no single one of a crowd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import ClientBeat
from coordinator.links import links_view
from protocol.resources import LinkFigures, Load, Resources
from protocol.rest import ClientView
from tests.coordinator.farm_simulation import Simulation


def client(down: float = 0.0, up: float = 0.0, trip: float = 0.0, state: str = "online") -> ClientView:
    figures = LinkFigures(download_bytes_per_second=down, upload_bytes_per_second=up, round_trip_seconds=trip)
    return ClientView(
        client_id="c",
        name="c",
        state=state,
        reason="",
        resources=Resources(),
        load=Load(),
        link=figures,
        slots=1,
        assignments=0,
        delivered=0,
        failed=0,
        reliability=1.0,
        incarnation=1,
        last_seen=0.0,
    )


def test_of_a_few_clients_the_slowest_counts_in_each_figure():
    found = links_view([client(9e6, 1e6, 0.01), client(5e6, 2e6, 0.09), client(7e6, 3e6, 0.02)])
    assert found.model_dump() == {
        "clients": 3,
        "round_trips": 3,
        "speeds": 3,
        "round_trip_seconds": 0.09,
        "download_bytes_per_second": 5e6,
        "upload_bytes_per_second": 1e6,
    }


def test_in_a_crowd_a_single_one_decides_nothing():
    crowd = [client(5e6, 1e6, 0.02) for _ in range(9)]
    assert links_view([*crowd, client(1, 1, 900)]).round_trip_seconds == 0.02
    assert links_view([*crowd, client(1, 1, 900)]).upload_bytes_per_second == 1e6
    assert links_view([*crowd[1:], client(1, 1, 900)]).upload_bytes_per_second == 1


@pytest.mark.parametrize("state", ["offline", "draining", "paused"])
def test_who_can_take_no_work_does_not_count(state: str):
    found = links_view([client(5e6, 1e6, 0.02), client(1, 1, 9, state=state)])
    assert (found.clients, found.download_bytes_per_second, found.round_trip_seconds) == (1, 5e6, 0.02)


def test_what_nobody_measured_is_zero():
    assert set(links_view([]).model_dump().values()) == {0}
    found = links_view([client(trip=0.03), client(up=2e6), client()])
    assert (found.clients, found.round_trips, found.speeds) == (3, 1, 1)
    assert (found.round_trip_seconds, found.download_bytes_per_second, found.upload_bytes_per_second) == (0.03, 0, 2e6)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=60))
def test_at_least_nine_tenths_are_as_fast_as_the_figure_says(speeds: list[float]):
    said = links_view(map(client, speeds)).download_bytes_per_second
    assert said in speeds
    slower = sum(speed < said for speed in speeds)
    assert slower <= len(speeds) / 10


def test_what_a_client_told_once_holds_until_it_tells_something_else() -> None:
    farm = Simulation()
    here = ("id-ada", farm.join("ada").incarnation)
    for told, shown in ((None, 0.0), (0.03, 0.03), (None, 0.03), (0.05, 0.05), (None, 0.05)):
        link = None if told is None else LinkFigures(round_trip_seconds=told)
        farm.handle(ClientBeat(*here, Load(link=link), ()))
        (view,) = farm.coordinator.client_views(farm.now)
        assert view.link.round_trip_seconds == shown
