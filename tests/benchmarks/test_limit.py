"""The comparison program does what it claims: it averages what comes back and keeps the result."""

from __future__ import annotations

import asyncio
import socket
import threading

import numpy as np

from benchmarks import limit


def echo(connection: socket.socket, scale: float, params: int) -> None:
    with connection:
        data = bytearray()
        while len(data) < 4 * params:
            data += connection.recv(4 * params - len(data))
        vector = np.frombuffer(bytes(data), dtype=np.float32) + scale
        connection.sendall(vector.tobytes())


def test_a_round_averages_the_updates_and_writes_them(tmp_path):
    params = 100_000
    server = limit.AveragingServer(params, 2, tmp_path)
    pairs = [socket.socketpair() for _ in range(2)]
    echoes = [threading.Thread(target=echo, args=(pair[1], 1.0 + i, params)) for i, pair in enumerate(pairs)]
    for thread in echoes:
        thread.start()
    for ours, _ in pairs:
        ours.setblocking(False)
    asyncio.run(server.round([ours for ours, _ in pairs]))
    for thread in echoes:
        thread.join()
    for ours, _ in pairs:
        ours.close()
    written = np.frombuffer((tmp_path / "weights").read_bytes(), dtype=np.float32)
    assert np.array_equal(written, np.full(params, 1.5, dtype=np.float32))


def test_processes_are_measured_and_end(tmp_path):
    assert limit.measure(params=1000, clients=2, seconds=0.2, folder=tmp_path) > 10
