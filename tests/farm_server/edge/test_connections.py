from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farm_server.edge.connections import Connection, ConnectionBook


class Socket:
    def drop(self) -> None:
        raise AssertionError("the book closes nothing itself")


def book(most: int = 100, unknown: int = 100, per_address: int = 100) -> ConnectionBook:
    return ConnectionBook(most, unknown, per_address)


def test_the_oldest_unknown_connection_makes_room():
    connections = book(unknown=2)
    first, _ = connections.open("a", Socket(), 0.0)
    second, _ = connections.open("b", Socket(), 1.0)
    third, dropped = connections.open("c", Socket(), 2.0)
    assert dropped == [first]
    assert (second.is_open, third.is_open, len(connections)) == (True, True, 2)


def test_who_has_shown_a_token_is_not_pushed_out():
    connections = book(unknown=2)
    known, _ = connections.open("a", Socket(), 0.0)
    connections.know(known)
    for number in range(50):
        connections.open("b", Socket(), 1.0 + number)
    assert known.is_open
    assert (connections.unknown_count, len(connections)) == (2, 3)


def test_one_address_pushes_out_its_own_connections_only():
    connections = book(per_address=2)
    other, _ = connections.open("b", Socket(), 0.0)
    first, _ = connections.open("a", Socket(), 1.0)
    connections.open("a", Socket(), 2.0)
    _, dropped = connections.open("a", Socket(), 3.0)
    assert dropped == [first]
    assert other.is_open


def test_a_newcomer_goes_where_all_others_are_known():
    connections = book(most=2)
    for address in "ab":
        connections.know(connections.open(address, Socket(), 0.0)[0])
    newcomer, dropped = connections.open("c", Socket(), 1.0)
    assert dropped == [newcomer]
    assert len(connections) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "know", "close"]), st.sampled_from("abc"), st.integers(0, 20)), max_size=80
    )
)
def test_the_bounds_hold_whatever_happens(steps):
    connections = book(most=6, unknown=4, per_address=3)
    made: list[Connection] = []
    for now, (what, address, which) in enumerate(steps):
        if what == "open":
            made.append(connections.open(address, Socket(), float(now))[0])
        elif made:
            (connections.know if what == "know" else connections.close)(made[which % len(made)])
        open_now = [c for c in made if c.is_open]
        unknown = [c for c in open_now if not c.known]
        assert len(connections) == len(open_now) <= 6
        assert connections.unknown_count == len(unknown) <= 4
        assert all(sum(c.address == a for c in unknown) <= 3 for a in "abc")
