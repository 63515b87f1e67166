"""The WebSocket, bulk bytes and the API all go through the environment's proxy to the world, and never to loopback."""

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.link import open_link
from farm_client.sdk import config
from farm_client.sdk.api import FarmApi
from farm_client.sdk.errors import FarmUnreachable
from farm_client.transfer.partial_file import PartialFile
from protocol.digests import digest_bytes
from protocol.errors import Unavailable
from protocol.link_capacity import LinkCapacity
from protocol.retry import RetryPolicy
from tests.farm_client.agent.connection.test_link import hello
from tests.farm_client.agent.odd_server import carry
from tests.farm_client.agent.scripted_farm import TOKEN, running_farm

HOST = "farm.invalid"
DATA = b"bytes" * 1000


class Proxy:
    """An HTTP and SOCKS5 proxy for whom every host of the world is one port of this machine."""

    def __init__(self, farm_port):
        self.farm_port = farm_port
        self.asked = []

    async def meet(self, reader, writer):
        with suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readexactly(1)
            rest = await (self.socks(reader, writer) if first == b"\x05" else self.http(first, reader, writer))
            from_farm, to_farm = await asyncio.open_connection("127.0.0.1", self.farm_port)
            to_farm.write(rest)
            async with asyncio.TaskGroup() as group:
                group.create_task(carry(reader, to_farm))
                group.create_task(carry(from_farm, writer))

    async def socks(self, reader, writer):
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x00")
        request = await reader.readexactly(5)
        assert request[3] == 3  # by name: the proxy asks the DNS
        self.asked.append((await reader.readexactly(request[4])).decode())
        await reader.readexactly(2)
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return b""

    async def http(self, first, reader, writer):
        head = first + await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        method, place, _ = line.split()
        assert b"proxy-authorization: basic dXNlcjpwQHNz".lower() in rest.lower()
        self.asked.append(place.decode())
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            return b""
        path = b"/" + place.split(b"/", 3)[3]
        return b" ".join((method, path, b"HTTP/1.1\r\n")) + rest


@asynccontextmanager
async def proxied(monkeypatch, scheme):
    for name in ("HTTP", "HTTPS", "ALL", "SOCKS", "NO"):
        monkeypatch.delenv(f"{name}_PROXY", raising=False)
        monkeypatch.delenv(f"{name}_proxy".lower(), raising=False)
    async with running_farm() as farm:
        proxy = Proxy(farm.port)
        async with await asyncio.start_server(proxy.meet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            credentials = "" if scheme == "socks" else "user:p%40ss@"
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://{credentials}127.0.0.1:{port}")
            yield farm, proxy


async def use_everything(farm, host, tmp_path):
    """Join, upload, download, and ask the API, each over the network."""
    address = parse_address(f"ws://{TOKEN}@{host}:{farm.port}")
    opening = asyncio.create_task(open_link(address, hello(2), LinkCapacity()))
    await (await farm.next_client()).welcome()
    await (await opening).close()
    ref = farm.store(DATA)
    async with Transfers(address, RetryPolicy(0.0, 0.0, tries=1)) as transfers:
        await transfers.upload(digest_bytes(b"new"), b"new")
        await transfers.download(ref.digest, PartialFile(tmp_path / "blob", ref.size_bytes), lambda _: None)
    assert (tmp_path / "blob").read_bytes() == DATA
    api = FarmApi(config.parse_address(f"http://{TOKEN}@{host}:{farm.port}", "test"))
    with api, pytest.raises(FarmUnreachable, match="404"):  # the scripted farm has no API
        await asyncio.to_thread(api.tasks)


@pytest.mark.parametrize("scheme", ["http", "socks"])
async def test_the_world_is_reached_through_the_proxy(monkeypatch, tmp_path, scheme):
    async with proxied(monkeypatch, scheme) as (farm, proxy):
        await use_everything(farm, HOST, tmp_path)
        assert len(proxy.asked) >= 4
        assert all(HOST in asked for asked in proxy.asked)


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:9", "socks://127.0.0.1:9", "socks4://nobody", "nonsense://", "://"]
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_this_machine_is_reached_without_it_whatever_it_is(monkeypatch, tmp_path, value, host):
    async with running_farm() as farm:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "SOCKS_PROXY"):
            monkeypatch.setenv(name, value)
        await use_everything(farm, host, tmp_path)


async def test_a_proxy_that_is_away_is_waited_for_like_a_farm(monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name in ("HTTP_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with Transfers(parse_address(f"ws://{HOST}"), RetryPolicy(0.0, 0.0, tries=2)) as transfers:
            with pytest.raises(Unavailable):
                await transfers.upload(digest_bytes(b"new"), b"new")
            with pytest.raises(Unavailable):
                await transfers.download("ab" * 32, PartialFile(tmp_path / "blob", 9), lambda _: None)
