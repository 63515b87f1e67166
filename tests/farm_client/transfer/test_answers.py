"""What is read of an answer: raw and bounded, in the agent's transfers and in the researcher's API alike."""

import asyncio
import gzip
import threading
import tracemalloc

import httpx
import pytest
from pydantic import TypeAdapter

from farm_client.sdk import api as api_module
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import FarmUnreachable
from farm_client.transfer import answers
from farm_client.transfer.answers import MAX_ERROR_BYTES, client_options
from farm_client.transfer.bulk_transport import BulkTransport
from farm_client.transfer.carrier import Carrier
from farm_client.transfer.download import download
from farm_client.transfer.partial_file import PartialFile
from farm_client.transfer.upload import upload
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError, Unavailable
from protocol.rest import TaskView
from protocol.retry import RetryPolicy

BOMB = gzip.compress(bytes(64 * 1024 * 1024))
MOST_BYTES = 16 * 1024 * 1024
"""What a test of 64 MiB may take at the most."""
SMALL, LARGE = b"small", b"l" * 3_000_000


class Enemy:
    """Answers every request with a status, some headers, and a body: whole, or chunk after chunk without end."""

    def __init__(self, status, headers, body=b"", endless=b""):
        self.head = f"HTTP/1.1 {status} X\r\n{headers}\r\n".encode()
        self.body, self.endless = body, endless
        self.heads = []

    async def meet(self, reader, writer):
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.head + self.body)
                while self.endless:
                    writer.write(self.endless)
                    await writer.drain()
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()


def enemies(status):
    """Bodies that swell, or do not end."""
    length = f"content-length: {len(BOMB)}\r\n"
    return {
        "bomb": Enemy(status, f"content-encoding: gzip\r\ncontent-type: application/json\r\n{length}", BOMB),
        "endless": Enemy(status, "content-type: application/json\r\n", endless=b" " * 65536),
        "endless chunks": Enemy(
            status, "transfer-encoding: chunked\r\n", endless=b"10000\r\n" + b" " * 65536 + b"\r\n"
        ),
        "endless bomb": Enemy(status, "content-encoding: gzip\r\n", endless=BOMB),
    }


class Threaded:
    """Serves an enemy from a thread of its own, for clients that have no event loop."""

    def __init__(self, enemy):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        listening = asyncio.start_server(enemy.meet, "127.0.0.1", 0)
        self.server = asyncio.run_coroutine_threadsafe(listening, self.loop).result()
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def close(self):
        async def stop():
            self.server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def threaded():
    running = []

    def serve(enemy):
        running.append(Threaded(enemy))
        return running[-1].url

    yield serve
    for server in running:
        server.close()


@pytest.fixture
def memory():
    tracemalloc.start()
    yield
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < MOST_BYTES


async def transfers(url, tmp_path):
    """Try each way that the agent and the SDK move blobs, and give what they say."""
    options = client_options(url, {})
    with httpx.Client(**options, transport=BulkTransport(), timeout=5) as bulk:
        async with httpx.AsyncClient(**options, timeout=5) as http:
            carrier = Carrier(http, bulk, RetryPolicy(0.0, 0.0, tries=2))
            for work in (
                lambda: upload(carrier, digest_bytes(SMALL), SMALL),
                lambda: upload(carrier, digest_bytes(LARGE), LARGE),
                lambda: download(carrier, digest_bytes(SMALL), PartialFile(tmp_path / "blob", len(SMALL))),
            ):
                with pytest.raises(FarmError) as told:
                    await work()
                yield told.value


@pytest.mark.parametrize("status", [401, 404, 413, 500])
@pytest.mark.parametrize("kind", enemies(500))
async def test_transfers_read_no_more_of_an_error_than_is_sane(threaded, memory, tmp_path, monkeypatch, status, kind):
    monkeypatch.setattr(answers, "ERROR_SECONDS", 2.0)
    enemy = enemies(status)[kind]
    async for error in transfers(threaded(enemy), tmp_path):
        assert isinstance(error, Unavailable | DigestMismatch)
        assert len(error.message) < 1000
    assert all(b"accept-encoding: identity\r\n" in head.lower() for head in enemy.heads)


@pytest.mark.parametrize("status", [200, 201, 206])
@pytest.mark.parametrize("kind", ["bomb", "endless", "endless chunks"])
async def test_transfers_read_no_more_of_a_success_than_is_sane(threaded, memory, tmp_path, status, kind):
    async for error in transfers(threaded(enemies(status)[kind]), tmp_path):
        assert isinstance(error, Unavailable | DigestMismatch)


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("kind", enemies(500))
def test_the_api_reads_no_more_than_is_sane(threaded, memory, monkeypatch, status, kind):
    monkeypatch.setattr(api_module, "MAX_ANSWER_BYTES", 1024 * 1024)
    enemy = enemies(status)[kind]
    with FarmApi(parse_address(threaded(enemy), "test")) as api, pytest.raises(FarmUnreachable):
        api.tasks()
    if status != 200 or enemy.endless:
        with FarmApi(parse_address(threaded(enemy), "test")) as api, pytest.raises(FarmUnreachable):
            api.page()
    assert all(b"accept-encoding: identity\r\n" in head.lower() for head in enemy.heads)


def test_a_refusal_that_trickles_is_cut_off(threaded, monkeypatch):
    """A body of 64 KiB at a byte a second would take a day."""
    monkeypatch.setattr(answers, "ERROR_SECONDS", 0.0)
    enemy = Enemy(404, "", endless=b" ")
    with FarmApi(parse_address(threaded(enemy), "test")) as api, pytest.raises(FarmUnreachable):
        api.tasks()


def test_a_refusal_in_the_farms_words_is_read_whole(threaded):
    body = TypeAdapter(dict).dump_json({"code": "conflict", "message": "x" * (MAX_ERROR_BYTES - 100)})
    enemy = Enemy(409, f"content-length: {len(body)}\r\n", body)
    with FarmApi(parse_address(threaded(enemy), "test")) as api, pytest.raises(FarmError) as told:
        api.act("t", "pause")
    assert told.value.code == "conflict"


def test_an_answer_within_the_bounds_is_as_it_was(threaded):
    body = TypeAdapter(list[TaskView]).dump_json([])
    with FarmApi(parse_address(threaded(Enemy(200, f"content-length: {len(body)}\r\n", body)), "test")) as api:
        assert api.tasks() == []
