"""A client that uploads in parts, as the protocol page says, and can be cut off anywhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from protocol.digests import digest_bytes
from protocol.ranges import ByteRange, ContentRange
from protocol.rest_uploads import UploadReply, UploadView


class Uploader:
    """One client's way to one blob. ``sent_bytes`` counts what it sent, whatever became of it."""

    def __init__(self, http: httpx.AsyncClient, data: bytes, name: str = "c1", digest: str | None = None) -> None:
        self.http = http
        self.data = data
        self.digest = digest or digest_bytes(data)
        self.headers = {"X-Farm-Client": name}
        self.sent_bytes = 0

    async def ask(self, wait_seconds: float = 0.0, **body: Any) -> UploadReply:
        answer = await self.try_ask(wait_seconds=wait_seconds, **body)
        assert answer.status_code == 200, answer.text
        return UploadReply.model_validate_json(answer.content)

    async def try_ask(self, **body: Any) -> httpx.Response:
        body = {"size_bytes": len(self.data)} | body
        return await self.http.post(f"/v1/blobs/{self.digest}/upload", json=body, headers=self.headers)

    async def missing(self) -> list[tuple[int, int]]:
        return [tuple(hole) for hole in (await self.ask()).missing]

    async def send(self, start: int, end: int, **headers: str) -> httpx.Response:
        part = ContentRange(start, end, len(self.data))
        self.sent_bytes += part.size_bytes
        sent = self.headers | {"Content-Range": str(part)} | {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.http.patch(f"/v1/blobs/{self.digest}", content=self.data[start:end], headers=sent)

    async def finish(self, part_bytes: int) -> list[int]:
        """Ask what is missing and send it, ``parallel`` at once; return the answers' statuses."""
        reply = await self.ask()
        gate = asyncio.Semaphore(reply.parallel)

        async def one(part: ByteRange) -> int:
            async with gate:
                return (await self.send(*part)).status_code

        parts = [part for hole in reply.missing for part in hole.parts(min(part_bytes, reply.part_bytes))]
        return list(await asyncio.gather(*map(one, parts)))

    @contextmanager
    def begun(self, url: str, token: str, start: int, end: int, count: int) -> Iterator[socket.socket]:
        """Open a connection and send ``count`` bytes of a part; the connection is cut at the end of the block."""
        part = ContentRange(start, end, len(self.data))
        lines = (
            f"PATCH /v1/blobs/{self.digest} HTTP/1.1",
            "Host: farm",
            f"Authorization: Bearer {token}",
            f"Content-Range: {part}",
            f"Content-Length: {part.size_bytes}",
        )
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            connection.sendall(self.data[start : start + count])
            self.sent_bytes += count
            yield connection


async def uploads(http: httpx.AsyncClient) -> list[UploadView]:
    answer = await http.get("/v1/uploads")
    assert answer.status_code == 200, answer.text
    return [UploadView.model_validate(view) for view in answer.json()]


async def received_bytes(http: httpx.AsyncClient, digest: str) -> int:
    return sum(view.received_bytes for view in await uploads(http) if view.digest == digest)


async def until_received(http: httpx.AsyncClient, digest: str, count: int) -> None:
    """Wait until the server has so many bytes of a blob."""
    async with asyncio.timeout(30):
        while count != await received_bytes(http, digest):  # noqa: ASYNC110  only HTTP tells
            await asyncio.sleep(0.01)
