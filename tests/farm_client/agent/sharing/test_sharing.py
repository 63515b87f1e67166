"""Blobs that one agent lends to another: the same file, kept while it is lent, and a download where nothing is lent."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import parse_address
from farm_client.agent.errors import CacheFull, NoControlSocket
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.settings import AgentSettings
from farm_client.agent.sharing import borrower as borrowing
from farm_client.agent.sharing import lender as lending_module
from farm_client.agent.sharing.borrower import HostBlobs
from farm_client.agent.sharing.house import lending, shared_blobs
from farm_client.agent.sharing.lender import BlobLender
from farm_client.agent.sharing.records import RECORD_BYTES, Wish, read_request, request
from protocol.digests import digest_bytes
from tests.farm_client.agent.waiting import until

DATA = bytes(range(256)) * 1000
DIGEST = digest_bytes(DATA)
ROOM = 10 * len(DATA)


@pytest.fixture
def host(tmp_path):
    cache = BlobCache(_folder(tmp_path / "host"), ROOM)
    cache.put(DIGEST, DATA)
    return cache


@pytest.fixture
def cache(tmp_path):
    return BlobCache(_folder(tmp_path / "own"), ROOM)


@pytest.fixture
async def transfers(farm):
    async with Transfers(parse_address(farm.url), client_id="c1") as transfers:
        yield transfers


def _folder(path):
    path.mkdir(parents=True)
    return path


@asynccontextmanager
async def lent(host, tmp_path, max_bytes=ROOM):
    async with BlobLender(host, tmp_path / "blobs.sock", max_bytes).open() as lender:
        blobs = HostBlobs(tmp_path / "blobs.sock")
        try:
            yield lender, blobs
        finally:
            blobs.close()


async def brought(blobs, path, digest=DIGEST):
    return await asyncio.to_thread(blobs.bring, digest, path)


async def fetched(farm, cache, transfers, blobs):
    async with Fetcher(cache, transfers, blobs) as fetcher:
        path = await fetcher.fetch(farm.store(DATA))
        assert path.read_bytes() == DATA
    return [way for way, _ in farm.requests]


class TestLending:
    async def test_the_same_file_comes_and_nothing_crosses_the_wire(self, farm, host, cache, transfers, tmp_path):
        async with lent(host, tmp_path) as (lender, blobs):
            assert await fetched(farm, cache, transfers, blobs) == []
            assert cache.path(DIGEST).stat().st_ino == host.path(DIGEST).stat().st_ino
            await until(lambda: lender.lent_bytes == 0)  # the fetcher's end was the lease's

    async def test_what_is_lent_is_not_evicted_and_is_afterwards(self, host, tmp_path):
        async with lent(host, tmp_path) as (lender, blobs):
            assert await brought(blobs, tmp_path / "linked") is not None
            assert lender.lent_bytes == len(DATA)
            with pytest.raises(CacheFull):
                host.make_room(ROOM)
            blobs.end(DIGEST)
            await until(lambda: lender.lent_bytes == 0)
            host.make_room(ROOM)
            assert DIGEST not in host
        assert (tmp_path / "linked").read_bytes() == DATA, "a name of one's own outlives the lender's"

    async def test_leases_end_with_the_connection(self, host, tmp_path):
        async with lent(host, tmp_path) as (lender, blobs):
            await brought(blobs, tmp_path / "linked")
            blobs.close()
            await until(lambda: lender.lent_bytes == 0)

    async def test_the_borrower_gives_back_what_it_dropped(self, host, tmp_path):
        async with lent(host, tmp_path) as (lender, blobs):
            await brought(blobs, tmp_path / "linked")
            blobs.end_all_but({DIGEST}.__contains__)
            await brought(blobs, tmp_path / "other", digest_bytes(b"not here"))
            assert lender.lent_bytes == len(DATA)
            blobs.end_all_but(set().__contains__)
            await until(lambda: lender.lent_bytes == 0)

    async def test_a_file_system_without_links_gets_a_copy_and_the_lease_ends(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr(borrowing, "_link", lambda *_: False)
        async with lent(host, tmp_path) as (lender, blobs):
            assert await brought(blobs, tmp_path / "copied") is not None
            assert (tmp_path / "copied").read_bytes() == DATA
            assert (tmp_path / "copied").stat().st_ino != host.path(DIGEST).stat().st_ino
            await until(lambda: lender.lent_bytes == 0)

    async def test_no_more_than_half_the_cache_is_lent(self, host, tmp_path):
        async with lent(host, tmp_path, max_bytes=2 * len(DATA) - 2) as (lender, blobs):
            assert await brought(blobs, tmp_path / "linked") is None
            assert lender.lent_bytes == 0

    async def test_a_blob_twice_asked_for_is_lent_once(self, host, tmp_path):
        async with lent(host, tmp_path) as (lender, blobs):
            await brought(blobs, tmp_path / "linked")
            await brought(blobs, tmp_path / "again")
            assert lender.lent_bytes == len(DATA)

    async def test_what_is_damaged_is_not_lent(self, host, tmp_path):
        host.path(DIGEST).chmod(0o600)
        host.path(DIGEST).write_bytes(b"x" * len(DATA))
        async with lent(host, tmp_path) as (_, blobs):
            assert await brought(blobs, tmp_path / "linked") is None
        assert DIGEST not in host

    async def test_a_borrower_looks_at_it_again(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr(borrowing, "look_if_sound", lambda *_: None)
        async with lent(host, tmp_path) as (lender, blobs):
            assert await brought(blobs, tmp_path / "linked") is None
            await until(lambda: lender.lent_bytes == 0)
        assert not (tmp_path / "linked").exists()

    async def test_a_full_disk_is_told_and_the_lease_ends(self, host, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(borrowing, "_link", lambda *_: False)
        monkeypatch.setattr(borrowing, "_copy", full)
        async with lent(host, tmp_path) as (lender, blobs):
            with pytest.raises(OSError, match="No space"):
                await brought(blobs, tmp_path / "copied")
            await until(lambda: lender.lent_bytes == 0)

    @pytest.mark.parametrize("said", [b"x" * RECORD_BYTES, b"L" + b"/" * 64, b"\xff" * 65, b"L" * 10])
    async def test_what_is_no_request_ends_that_connection_alone(self, host, tmp_path, said):
        async with lent(host, tmp_path) as (_, blobs):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "blobs.sock")
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            assert await brought(blobs, tmp_path / "linked") is not None

    async def test_more_borrowers_than_there_is_room_for_are_sent_away(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr(lending_module, "_MOST_CONNECTIONS", 1)
        async with lent(host, tmp_path) as (_, blobs):
            assert await brought(blobs, tmp_path / "linked") is not None
            other = HostBlobs(tmp_path / "blobs.sock")
            assert await brought(other, tmp_path / "second") is None

    async def test_another_user_is_sent_away(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr(lending_module, "is_of_this_user", lambda _: False)
        async with lent(host, tmp_path) as (_, blobs):
            assert await brought(blobs, tmp_path / "linked") is None

    async def test_a_system_without_such_sockets_lends_nothing(self, host, tmp_path, monkeypatch):
        def lacks(*_):
            raise NoControlSocket("none")

        monkeypatch.setattr(lending_module, "listening_socket", lacks)
        async with lent(host, tmp_path) as (_, blobs):
            assert await brought(blobs, tmp_path / "linked") is None


class TestWithoutALender:
    async def test_nobody_there_is_a_download(self, farm, cache, transfers, tmp_path):
        assert await fetched(farm, cache, transfers, HostBlobs(tmp_path / "blobs.sock")) == ["GET"]

    async def test_one_that_has_not_got_it_is_a_download(self, farm, cache, transfers, tmp_path):
        async with lent(BlobCache(_folder(tmp_path / "empty"), ROOM), tmp_path) as (_, blobs):
            assert await fetched(farm, cache, transfers, blobs) == ["GET"]

    async def test_what_came_in_part_is_gone_on_with(self, farm, host, cache, transfers, tmp_path):
        cache.partial_path(DIGEST).write_bytes(b"")
        async with lent(host, tmp_path) as (_, blobs):
            assert await fetched(farm, cache, transfers, blobs) == ["GET"]

    async def test_one_that_hangs_costs_its_patience_once(self, farm, host, cache, transfers, tmp_path, monkeypatch):
        monkeypatch.setattr(borrowing, "_PATIENCE_SECONDS", 0.05)
        now = [0.0]
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(tmp_path / "blobs.sock"))
            deaf.listen()
            blobs = HostBlobs(tmp_path / "blobs.sock", lambda: now[0])
            assert await fetched(farm, cache, transfers, blobs) == ["GET"]
        (tmp_path / "blobs.sock").unlink()
        async with BlobLender(host, tmp_path / "blobs.sock", ROOM).open():
            assert await brought(blobs, tmp_path / "linked") is None, "it is not asked again at once"
            now[0] = 60.0
            assert await brought(blobs, tmp_path / "linked") is not None
        blobs.close()

    async def test_another_users_agent_is_not_asked(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr(borrowing, "is_of_this_user", lambda _: False)
        async with lent(host, tmp_path) as (_, blobs):
            assert await brought(blobs, tmp_path / "linked") is None

    @pytest.mark.parametrize("answer", [b"", b"?", b"Y"])
    async def test_an_answer_that_is_none_ends_the_connection(self, tmp_path, answer):
        async def odd(reader, writer):
            await reader.readexactly(RECORD_BYTES)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(odd, tmp_path / "blobs.sock"):
            blobs = HostBlobs(tmp_path / "blobs.sock")
            assert await brought(blobs, tmp_path / "linked") is None
            assert blobs._connection is None

    async def test_a_lender_killed_in_the_midst_of_a_request_is_a_download(self, farm, cache, transfers, tmp_path):
        """A real process that takes the request, is stopped before it answers, and killed while we wait."""
        code = """
            import os, signal, socket, sys
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(sys.argv[1])
            listening.listen()
            print("ready", flush=True)
            connection, _ = listening.accept()
            connection.recv(65)
            print("asked", flush=True)
            signal.pause()
        """
        source = "\n".join(line.strip() for line in code.splitlines())
        lender = await asyncio.create_subprocess_exec(
            sys.executable, "-c", source, tmp_path / "blobs.sock", stdout=subprocess.PIPE
        )
        try:
            assert await lender.stdout.readline() == b"ready\n"
            blobs = HostBlobs(tmp_path / "blobs.sock")
            fetching = asyncio.create_task(fetched(farm, cache, transfers, blobs))
            assert await lender.stdout.readline() == b"asked\n"
            os.kill(lender.pid, signal.SIGKILL)
            assert await fetching == ["GET"]
        finally:
            with suppress(ProcessLookupError):
                lender.kill()
            await lender.wait()


class TestWhoAsksWhom:
    def test_the_hosts_own_agent_asks_nobody_and_others_ask_it(self, tmp_path):
        settings = AgentSettings(home=tmp_path / "a", host_home=tmp_path / "a")
        assert shared_blobs(HomeFolder(tmp_path / "a"), settings) is None
        assert shared_blobs(HomeFolder(tmp_path / "b"), settings) is not None

    async def test_who_shares_nothing_neither_asks_nor_lends(self, host, tmp_path):
        settings = AgentSettings(home=tmp_path, host_home=tmp_path / "a", share=False)
        assert shared_blobs(HomeFolder(tmp_path), settings) is None
        async with lending(host, HomeFolder(tmp_path), settings):
            assert not (tmp_path / "blobs.sock").exists()
        async with lending(host, HomeFolder(tmp_path), AgentSettings(home=tmp_path)):
            assert (tmp_path / "blobs.sock").exists()
        assert not (tmp_path / "blobs.sock").exists()


@given(st.sampled_from(Wish), st.binary(min_size=32, max_size=32).map(bytes.hex))
def test_a_request_is_read_as_it_was_written(wish, digest):
    record = request(wish, digest)
    assert len(record) == RECORD_BYTES
    assert read_request(record) == (wish, digest)
