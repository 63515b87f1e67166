"""Limits hold within a tenth over any second, for the server and for each client."""

from __future__ import annotations

import asyncio

import pytest

from farm_server.http.bulk import read_at_once_bytes
from farm_server.transfers.bandwidth import Bandwidth
from tests.farm_server.transfers.fast_time import run_fast

SECONDS = 4.0
Log = list[tuple[float, str, int]]


async def flow(bandwidth: Bandwidth, client: str, chunk_bytes: int, log: Log) -> None:
    """Push chunks through the limits until the time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    while loop.time() < end:
        async for piece in bandwidth.pace(client, b"x" * chunk_bytes):
            log.append((loop.time(), client, len(piece)))
            if loop.time() >= end:
                return


def run(total: int, each: int, clients: dict[str, int]) -> Log:
    """Let clients, each with chunks of its own size, push for some seconds."""

    async def work() -> Log:
        bandwidth, log = Bandwidth(total, each), Log()
        await asyncio.gather(*(flow(bandwidth, client, chunk, log) for client, chunk in clients.items()))
        return log

    return run_fast(work())


def most_in_a_second(log: Log) -> int:
    times = sorted({at for at, _, _ in log})
    return max(sum(size for at, _, size in log if begin <= at < begin + 1.0) for begin in times)


@pytest.mark.parametrize(
    ("rate", "chunk_bytes"),
    [(10, 1), (10, 7_777), (1_000, 1), (1_000, 250_000), (1_000_000, 7_777), (1_000_000, 250_000)],
)
def test_no_second_has_more_than_the_limit_and_none_much_less(rate: int, chunk_bytes: int) -> None:
    log = run(rate, 0, {"a": chunk_bytes})
    began = log[0][0]
    inside = sum(size for at, _, size in log if at < began + SECONDS)
    assert most_in_a_second(log) <= rate * 1.1 + 1
    assert inside >= rate * SECONDS * 0.9


def test_clients_share_the_servers_limit_and_none_starves() -> None:
    log = run(100_000, 0, {"small": 1_000, "large": 250_000, "medium": 30_000})
    assert most_in_a_second(log) <= 110_000
    began = log[0][0]
    for client in ("small", "large", "medium"):
        assert sum(size for at, name, size in log if name == client and at < began + SECONDS) > 20_000, client


def test_each_client_has_a_limit_of_its_own() -> None:
    log = run(0, 50_000, {"a": 9_000, "b": 9_000})
    for client in ("a", "b"):
        own = [entry for entry in log if entry[1] == client]
        assert 45_000 <= most_in_a_second(own) <= 55_000


def test_the_lower_limit_rules() -> None:
    log = run(60_000, 50_000, {"a": 9_000, "b": 9_000})
    assert most_in_a_second(log) <= 66_000


def test_without_limits_everything_passes_as_it_is() -> None:
    async def work() -> list[bytes]:
        bandwidth = Bandwidth(0, 0)
        assert not bandwidth.is_limited
        return [piece async for piece in bandwidth.pace("a", b"x" * 10**6)]

    assert run_fast(work()) == [b"x" * 10**6]


def test_the_pieces_are_the_data() -> None:
    async def work() -> bytes:
        data = bytes(range(256)) * 10
        assert b"".join([piece async for piece in Bandwidth(1000, 700).pace("a", data)]) == data
        return data

    assert len(run_fast(work())) == 2560


def test_transfers_are_counted_while_they_last() -> None:
    bandwidth = Bandwidth(0, 0)
    with bandwidth.in_use() as first, bandwidth.in_use() as second:
        assert (first, second) == (1, 2)
    with pytest.raises(OSError, match="cut"), bandwidth.in_use():
        raise OSError("cut")
    with bandwidth.in_use() as again:
        assert again == 1


def test_the_more_download_the_less_each_reads_at_once() -> None:
    mebibyte = 1024 * 1024
    assert [read_at_once_bytes(count) for count in (1, 8)] == [mebibyte, mebibyte]
    assert all(count * read_at_once_bytes(count) <= 8 * mebibyte for count in range(1, 129))
    assert read_at_once_bytes(10_000) == 64 * 1024
