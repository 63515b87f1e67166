"""The fault proxy itself: what it is asked to spoil it spoils, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.proxy import FaultProxy, Lane, Line

SMALL = b"0123456789"
BIG = bytes(range(256)) * 4096


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def exchange(connection: socket.socket, data: bytes) -> bytes:
    threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
    return read(connection, len(data))


def echo_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(SMALL)
        connection.recv(len(SMALL))


def test_an_unspoiled_proxy_changes_nothing(echo):
    with FaultProxy(echo) as proxy, connect(proxy) as connection:
        assert exchange(connection, BIG) == BIG
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_reset_is_felt_as_one_and_new_connections_work(echo):
    with FaultProxy(echo) as proxy:
        with connect(proxy) as connection:
            assert exchange(connection, SMALL) == SMALL
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with connect(proxy) as again:
            assert exchange(again, SMALL) == SMALL


def test_one_connection_is_reset_half_way(echo):
    with FaultProxy(echo) as proxy:
        proxy.reset_after(len(BIG) // 2)
        with connect(proxy) as connection, pytest.raises(ConnectionResetError):
            exchange(connection, BIG + SMALL)
        assert proxy.resets == 1
        with connect(proxy) as again:
            assert exchange(again, BIG) == BIG


def test_connections_that_live_for_so_many_bytes_are_reset_one_after_another(echo):
    with FaultProxy(echo, seed=1) as proxy:
        proxy.reset_each(100 * len(SMALL))
        for number in range(1, 4):
            with connect(proxy) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
                echo_for_ever(connection)
            assert proxy.resets == number
        proxy.reset_each(None)
        with connect(proxy) as again:
            assert exchange(again, BIG) == BIG


def test_a_stalled_line_keeps_what_it_holds_back(echo):
    with FaultProxy(echo) as proxy, connect(proxy) as connection:
        assert exchange(connection, SMALL) == SMALL
        proxy.stall()
        connection.settimeout(0.2)
        connection.sendall(SMALL)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.flow()
        connection.settimeout(10)
        assert read(connection, len(SMALL)) == SMALL


def test_a_half_open_connection_is_silent_and_open(echo):
    with FaultProxy(echo) as proxy, connect(proxy) as connection:
        assert exchange(connection, SMALL) == SMALL
        proxy.half_open()
        connection.settimeout(0.3)
        connection.sendall(SMALL)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_delay_and_bandwidth_are_felt(echo):
    with FaultProxy(echo, line=Line(delay_seconds=0.1)) as proxy, connect(proxy) as connection:
        began = time.monotonic()
        assert exchange(connection, SMALL) == SMALL
        assert time.monotonic() - began >= 0.2
        proxy.change(Line(bytes_per_second=len(BIG) / 0.4))
        began = time.monotonic()
        assert exchange(connection, BIG) == BIG
        assert time.monotonic() - began >= 0.4
        assert proxy.connections == 1


def test_connections_share_the_line(echo):
    line = Line(bytes_per_second=len(BIG) / 0.2)
    with FaultProxy(echo, line=line) as proxy, connect(proxy) as one, connect(proxy) as other:
        began = time.monotonic()
        for connection in (one, other):
            threading.Thread(target=connection.sendall, args=(BIG,), daemon=True).start()
        assert read(one, len(BIG)) == read(other, len(BIG)) == BIG
        assert time.monotonic() - began >= 0.4


def test_a_lane_has_exactly_its_speed_and_delay():
    lane, line = Lane(), Line(delay_seconds=0.1, bytes_per_second=1000, buffer_seconds=0.5)
    assert [lane.carry(line, 100, 0.0, now=7.0) for _ in range(3)] == pytest.approx([7.2, 7.3, 7.4])
    assert lane.carry(line, 100, 0.05, now=9.0) == pytest.approx(9.25)


def test_a_lane_takes_no_more_than_its_buffer():
    lane, line = Lane(), Line(bytes_per_second=1000, buffer_seconds=0.5)
    assert lane.wait_seconds(line, now=1.0) == 0
    lane.carry(line, 700, 0.0, now=1.0)
    assert lane.wait_seconds(line, now=1.0) == pytest.approx(0.2)
    assert lane.wait_seconds(line, now=1.2) == pytest.approx(0)
    assert lane.wait_seconds(Line(), now=1.0) == 0


@given(
    chunks=st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 0.5)), min_size=1, max_size=30),
    bytes_per_second=st.integers(1_000, 10**8),
)
@settings(max_examples=50, deadline=None)
def test_no_lane_is_faster_than_its_line_nor_idle_while_bytes_wait(chunks, bytes_per_second):
    """Whatever comes whenever: arrivals are those of a server that works off its queue at this speed."""
    lane, line, now, free_at = Lane(), Line(bytes_per_second=bytes_per_second), 0.0, 0.0
    for size_bytes, pause in chunks:
        now += pause
        free_at = max(free_at, now) + size_bytes / bytes_per_second
        assert lane.carry(line, size_bytes, 0.0, now) == pytest.approx(free_at)


def test_a_target_that_is_away_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = nobody.getsockname()
    # the reset may be there before the connection is
    with FaultProxy(target) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1)
