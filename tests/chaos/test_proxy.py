"""The fault proxy itself: what it is asked to spoil it spoils, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import FaultProxy, Line

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


def test_delay_and_bandwidth_are_what_was_asked_for(echo):
    with FaultProxy(echo, line=Line(delay_seconds=0.1)) as proxy, connect(proxy) as connection:
        began = time.monotonic()
        assert exchange(connection, SMALL) == SMALL
        assert time.monotonic() - began >= 0.2
        proxy.change(Line(bytes_per_second=len(BIG) / 0.4))
        began = time.monotonic()
        assert exchange(connection, BIG) == BIG
        assert 0.35 < time.monotonic() - began < 4
        assert proxy.connections == 1


def test_a_target_that_is_away_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = nobody.getsockname()
    with FaultProxy(target) as proxy, connect(proxy) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
