"""The simplest program that does a round's unavoidable work: the limit that the farm is compared with.

A server process sends the same weights to N client processes over plain TCP, each sends as many bytes back, the
server averages them as float32, writes the result to a file, fsyncs and renames it; then the next round. No
messages, no hashes, no checks, no ledger, no recovery.

Run as ``python -m benchmarks.limit serve …``; it starts its clients and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

REPOSITORY: Final = Path(__file__).parents[1]
WARM_UP_ROUNDS: Final = 3
WRITES: Final = 3


class AveragingServer:
    """Averages vectors of ``params`` float32 numbers from ``clients`` connections, round by round."""

    def __init__(self, params: int, clients: int, folder: Path) -> None:
        self._folder = folder
        self._weights = np.zeros(params, dtype=np.float32)
        self._updates = np.zeros((clients, params), dtype=np.float32)

    async def round(self, connections: list[socket.socket]) -> None:
        """Send the weights, collect the updates, average them, and make the result durable."""
        await asyncio.gather(*(self._exchange(c, u) for c, u in zip(connections, self._updates, strict=True)))
        np.mean(self._updates, axis=0, out=self._weights)
        self._write()

    async def _exchange(self, connection: socket.socket, update: np.ndarray) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, self._weights.data.cast("B"))
        view = update.data.cast("B")
        while view:
            view = view[await loop.sock_recv_into(connection, view) :]

    def _write(self) -> None:
        temporary = self._folder / "weights.tmp"
        _write_durably(temporary, self._weights.data.cast("B"))
        temporary.replace(self._folder / "weights")


def _write_durably(path: Path, data: memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def durable_write_s(size_bytes: int, folder: Path) -> float:
    """Return the median seconds of writing so many bytes to a file of ``folder``, and an fsync."""
    data, path = memoryview(bytes(size_bytes)), folder / "written"
    seconds = []
    for _ in range(WRITES):
        began = time.perf_counter()
        _write_durably(path, data)
        seconds.append(time.perf_counter() - began)
        path.unlink()
    return statistics.median(seconds)


def serve(params: int, clients: int, seconds: float, folder: Path) -> dict[str, float]:
    """Start the clients, run rounds for ``seconds`` after a warm-up, and return how many and how long they took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.limit", "join", "--port", str(port), "--params", str(params)]
        children = [subprocess.Popen(command) for _ in range(clients)]
        connections = [listener.accept()[0] for _ in range(clients)]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    counted = uvloop.run(_run_rounds(AveragingServer(params, clients, folder), connections, seconds))
    for connection in connections:
        connection.close()
    for child in children:
        child.wait()
    return counted


async def _run_rounds(server: AveragingServer, connections: list[socket.socket], seconds: float) -> dict[str, float]:
    for _ in range(WARM_UP_ROUNDS):
        await server.round(connections)
    rounds, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await server.round(connections)
        rounds += 1
    return {"rounds": rounds, "seconds": time.perf_counter() - began}


def join(port: int, params: int) -> None:
    """Send back whatever comes, a whole vector at a time, until the server closes."""
    vector = memoryview(bytearray(4 * params))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while _fill(connection, vector):
            connection.sendall(vector)


def _fill(connection: socket.socket, vector: memoryview) -> bool:
    """Read until the vector is full; False if the server closed."""
    while vector:
        received = connection.recv_into(vector)
        if not received:
            return False
        vector = vector[received:]
    return True


def measure(params: int, clients: int, seconds: float, folder: Path) -> float:
    """Return the limit's rounds per second, from a server process of its own."""
    command = [sys.executable, "-m", "benchmarks.limit", "serve", "--params", str(params)]
    command += ["--clients", str(clients), "--seconds", str(seconds), "--folder", str(folder)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    counted = json.loads(answer.stdout)
    return float(counted["rounds"] / counted["seconds"])


def main() -> None:
    """Be the server or a client of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "join"])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=Path())
    given = parser.parse_args()
    if given.role == "join":
        join(given.port, given.params)
    else:
        print(json.dumps(serve(given.params, given.clients, given.seconds, given.folder)))


if __name__ == "__main__":
    main()
