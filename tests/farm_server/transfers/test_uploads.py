"""Uploads in parts over HTTP: what was received is never asked for again, and what is stored is right."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from farm_server.environment.clock import Clock
from farm_server.http import bulk
from farm_server.http.bulk import BulkFile
from protocol.digests import digest_bytes
from protocol.rest_uploads import UploadState
from storage.blobs import FolderBlobStore
from storage.part_writer import write_part
from storage.uploads import UPLOADS, UploadFolder
from tests.farm_server.conftest import Running
from tests.farm_server.transfers.uploading import Uploader, until_received, uploads

MEBIBYTE = 1024**2
DATA = random.Random(8).randbytes(3 * MEBIBYTE + 77)
SMALL = DATA[:200]


def counter(server: Running, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.farm.telemetry.page({}).decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if sample.labels == labels)


class LateClock:
    """Another clock, so many seconds later."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def now(self) -> float:
        return self._clock.now() + self._seconds


@pytest.fixture
def uploader(server: Running) -> Uploader:
    return Uploader(server.http, DATA)


async def stored(server: Running, uploader: Uploader) -> bool:
    """Tell whether the blob is there and whole, and nothing else is left of its upload."""
    answer = await server.http.get(f"/v1/blobs/{uploader.digest}")
    return answer.content == uploader.data and not await uploads(server.http)


class TestInOrderOrNot:
    """What arrives makes the blob, in whatever order and company."""

    @pytest.mark.parametrize("part_bytes", [500_000, MEBIBYTE, 10**9])
    async def test_parts_at_the_same_time_are_the_blob(self, server, uploader, part_bytes):
        statuses = await uploader.finish(part_bytes)
        assert statuses.count(201) == 1
        assert set(statuses) <= {201, 204}
        assert await stored(server, uploader)
        assert uploader.sent_bytes == len(DATA) == counter(server, "farm_blob_bytes_total", direction="in")

    async def test_parts_from_the_end_to_the_start(self, server, uploader):
        await uploader.ask()
        starts = range(0, len(DATA), 700_000)
        answers = [await uploader.send(start, min(start + 700_000, len(DATA))) for start in reversed(starts)]
        assert [answer.status_code for answer in answers] == [204] * (len(starts) - 1) + [201]
        assert await stored(server, uploader)

    async def test_overlapping_parts_are_harmless(self, server, uploader):
        await uploader.ask()
        assert (await uploader.send(0, 2 * MEBIBYTE)).status_code == 204
        assert (await uploader.send(0, 2 * MEBIBYTE)).status_code == 204
        assert (await uploader.send(MEBIBYTE, len(DATA))).status_code == 201
        assert await stored(server, uploader)

    async def test_several_clients_with_the_same_blob_share_what_is_there(self, server, uploader):
        other = Uploader(server.http, DATA, "c2")
        await uploader.ask()
        assert (await uploader.send(0, MEBIBYTE)).status_code == 204
        assert await other.missing() == [(MEBIBYTE, len(DATA))]
        (view,) = await uploads(server.http)
        assert view.clients == ("c1", "c2")
        assert (await other.send(MEBIBYTE, len(DATA))).status_code == 201
        assert (await uploader.ask()).state is UploadState.STORED
        assert await stored(server, uploader)

    async def test_several_clients_at_the_same_time(self, server):
        clients = [Uploader(server.http, DATA, f"c{n}") for n in range(4)]
        statuses = await asyncio.gather(*(client.finish(400_000) for client in clients))
        assert sum(answers.count(201) for answers in statuses) == 1
        assert {status for answers in statuses for status in answers} <= {201, 204, 409}
        assert {(await client.ask()).state for client in clients} == {UploadState.STORED}
        assert await stored(server, clients[0])

    async def test_a_small_blob_cut_after_every_byte(self, server, monkeypatch):
        monkeypatch.setattr("os.fsync", lambda _: None)
        for cut in range(0, len(SMALL), 9):
            data = bytes([cut]) + SMALL
            uploader = Uploader(server.http, data)
            await uploader.ask()
            with uploader.begun(server.info.url, server.farm.tokens.join, 0, len(data), cut):
                await until_received(server.http, uploader.digest, cut)
            assert await uploader.missing() == [(cut, len(data))]
            assert (await uploader.send(cut, len(data))).status_code == 201
            assert uploader.sent_bytes == len(data)
            assert await stored(server, uploader)

    async def test_an_empty_blob_needs_no_part(self, server):
        assert (await Uploader(server.http, b"").ask()).state is UploadState.STORED
        assert (await server.http.get(f"/v1/blobs/{digest_bytes(b'')}")).content == b""


class TestResuming:
    """A cut, a restart: what came is not sent again."""

    async def test_a_part_that_is_cut_goes_on_where_it_was(self, server, uploader):
        await uploader.ask()
        got = MEBIBYTE + 12_345
        with uploader.begun(server.info.url, server.farm.tokens.farm, 0, 2 * MEBIBYTE, got):
            await until_received(server.http, uploader.digest, got)
        assert await uploader.missing() == [(got, len(DATA))]
        assert await uploader.finish(MEBIBYTE)
        assert await stored(server, uploader)
        assert uploader.sent_bytes == len(DATA) == counter(server, "farm_blob_bytes_total", direction="in")

    async def test_a_restart_of_the_server_loses_nothing(self, start):
        async with start() as server:
            uploader = Uploader(server.http, DATA)
            await uploader.ask()
            await uploader.send(MEBIBYTE, 2 * MEBIBYTE)
        async with start() as server:
            again = Uploader(server.http, DATA)
            (view,) = await uploads(server.http)
            assert view.received_bytes == MEBIBYTE
            assert (await again.send(0, MEBIBYTE)).status_code == 409, "ask first"
            assert await again.missing() == [(0, MEBIBYTE), (2 * MEBIBYTE, len(DATA))]
            assert counter(server, "farm_blob_saved_bytes_total", why="resumed") == MEBIBYTE
            again.sent_bytes = 0
            assert 201 in await again.finish(MEBIBYTE)
            assert again.sent_bytes == len(DATA) - MEBIBYTE
            assert await stored(server, again)

    @pytest.mark.parametrize("damage", [False, True])
    async def test_what_was_complete_before_a_restart_is_checked_at_the_next_question(self, start, tmp_path, damage):
        store = FolderBlobStore(tmp_path / "blobs")
        partial = UploadFolder(tmp_path / "blobs" / UPLOADS, store).open(digest_bytes(DATA), len(DATA))
        write_part(partial, 0, [bytes(len(DATA)) if damage else DATA])
        async with start() as server:
            uploader = Uploader(server.http, DATA)
            reply = await uploader.ask()
            if damage:
                assert reply.missing == ((0, len(DATA)),), "all of it is wanted again"
                await uploader.finish(MEBIBYTE)
            else:
                assert reply.state is UploadState.STORED
            assert await stored(server, uploader)

    async def test_known_blobs_are_not_sent(self, server, uploader):
        assert (await server.http.put(f"/v1/blobs/{uploader.digest}", content=DATA)).status_code == 201
        assert (await server.http.head(f"/v1/blobs/{uploader.digest}")).status_code == 200
        assert (await uploader.ask()).state is UploadState.STORED
        assert counter(server, "farm_blob_saved_bytes_total", why="known") == len(DATA)

    async def test_a_put_ends_an_upload_of_the_same_blob(self, server, uploader):
        await uploader.ask()
        await uploader.send(0, MEBIBYTE)
        assert (await server.http.put(f"/v1/blobs/{uploader.digest}", content=DATA)).status_code == 201
        assert (await uploader.ask()).state is UploadState.STORED
        assert (await uploader.send(MEBIBYTE, 2 * MEBIBYTE)).status_code == 409
        assert await stored(server, uploader)


class TestBadInput:
    """Every refusal is an answer that says what to do, and costs only what was wrong."""

    async def test_bytes_that_do_not_hash_to_their_name_are_dropped(self, server):
        uploader = Uploader(server.http, DATA, digest=digest_bytes(b"something else"))
        await uploader.ask()
        await uploader.send(0, MEBIBYTE)
        answer = await uploader.send(MEBIBYTE, len(DATA))
        assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
        assert await uploads(server.http) == []
        assert await uploader.missing() == [(0, len(DATA))]

    async def test_a_part_of_another_total_belongs_to_no_upload(self, server, uploader):
        await uploader.ask()
        answer = await uploader.send(0, 10, Content_Range=f"bytes 0-9/{len(DATA) + 1}")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_upload")
        assert "POST" in answer.json()["message"]

    async def test_a_part_that_nobody_asked_for_is_refused(self, server, uploader):
        assert (await uploader.send(0, 10)).status_code == 409
        assert await uploads(server.http) == []

    @pytest.mark.parametrize(
        "header", ["bytes 9-0/3145805", "bytes 0-9", "bytes 0-9/*", "0-9/3145805", "bytes 3145800-3145805/3145805"]
    )
    async def test_a_content_range_that_cannot_be(self, server, uploader, header):
        await uploader.ask()
        answer = await uploader.send(0, 10, Content_Range=header)
        assert (answer.status_code, answer.json()["code"]) == (416, "bad_content_range")
        assert await uploader.missing() == [(0, len(DATA))]

    async def test_a_missing_content_range(self, server, uploader):
        await uploader.ask()
        answer = await server.http.patch(f"/v1/blobs/{uploader.digest}", content=b"0123456789")
        assert (answer.status_code, answer.json()["code"]) == (416, "bad_content_range")

    async def test_a_body_of_another_length_than_it_says(self, server, uploader):
        await uploader.ask()
        headers = {"Content-Range": f"bytes 0-9/{len(DATA)}"}
        path = f"/v1/blobs/{uploader.digest}"
        assert (await server.http.patch(path, content=DATA[:11], headers=headers)).status_code == 416
        assert await uploader.missing() == [(0, len(DATA))]

        async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        too_long = await server.http.patch(path, content=chunks(DATA[:6], DATA[6:20]), headers=headers)
        assert too_long.status_code == 416
        assert await uploader.missing() == [(10, len(DATA))], "what its range allowed is kept"
        short = await server.http.patch(
            path, content=chunks(DATA[10:15]), headers={"Content-Range": f"bytes 10-19/{len(DATA)}"}
        )
        assert short.status_code == 204
        assert await uploader.missing() == [(15, len(DATA))]

    async def test_a_blob_or_a_part_over_the_limit(self, start):
        async with start(max_blob_bytes=2 * MEBIBYTE, upload_part_bytes=MEBIBYTE) as server:
            answer = await Uploader(server.http, DATA).try_ask()
            assert (answer.status_code, answer.json()["code"]) == (413, "blob_too_large")
            uploader = Uploader(server.http, DATA[: 2 * MEBIBYTE])
            assert (await uploader.ask()).part_bytes == MEBIBYTE
            assert (await uploader.send(0, MEBIBYTE + 1)).status_code == 413
            assert (await uploader.send(0, MEBIBYTE)).status_code == 204

    @pytest.mark.parametrize("body", [{"size_bytes": -1}, {"size_bytes": "many"}, {"wait_seconds": 31}])
    async def test_a_question_that_cannot_be(self, server, uploader, body):
        answer = await uploader.try_ask(**body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")

    async def test_a_question_is_a_small_request(self, start):
        async with start(max_body_bytes=64 * 1024) as server:
            assert (await Uploader(server.http, DATA).try_ask(padding="x" * 70_000)).status_code == 413

    async def test_blobs_take_either_token_and_the_list_only_the_farms(self, server, uploader):
        async with server.client() as nobody:
            assert (await Uploader(nobody, DATA).try_ask()).status_code == 401
            assert (await Uploader(nobody, DATA).send(0, 10)).status_code == 401
            volunteer = {"Authorization": f"Bearer {server.farm.tokens.join}"}
            assert (await nobody.get("/v1/uploads", headers=volunteer)).status_code == 401
        async with server.client(headers=volunteer) as http:
            assert (await Uploader(http, SMALL).finish(100)).count(201) == 1

    async def test_an_upload_in_very_many_pieces_is_continued_in_order(self, server, monkeypatch):
        monkeypatch.setattr("farm_server.transfers.uploads._MOST_RANGES", 3)
        uploader = Uploader(server.http, SMALL)
        await uploader.ask()
        for start in (10, 30):
            assert (await uploader.send(start, start + 1)).status_code == 204
        assert (await uploader.send(50, 51)).status_code == 416
        assert (await uploader.send(11, 20)).status_code == 204


class TestTheDisk:
    """A disk that is full, or nearly."""

    async def test_nothing_is_begun_that_has_no_room(self, server, uploader, monkeypatch):
        monkeypatch.setattr(server.farm.disk_space, "lacks", lambda size=0: "too little is free" if size else None)
        answer = await uploader.try_ask()
        assert (answer.status_code, answer.json()["message"]) == (503, "too little is free")

    async def test_idle_uploads_give_way(self, start, monkeypatch):
        async with start(upload_idle_seconds=0.01) as server:
            old, new = Uploader(server.http, DATA), Uploader(server.http, DATA[:-1])
            await old.ask()
            await old.send(0, MEBIBYTE)

            def lacks(_size_bytes: int = 0) -> str | None:
                return "too little is free" if len(server.farm.uploads.views()) else None

            monkeypatch.setattr(server.farm.disk_space, "lacks", lacks)
            async with asyncio.timeout(30):
                while (await new.try_ask()).status_code == 503:  # noqa: ASYNC110  the server's time must pass
                    await asyncio.sleep(0.01)
            monkeypatch.undo()
            assert {view.digest for view in await uploads(server.http)} == {new.digest}
            assert await old.missing() == [(0, len(DATA))]

    async def test_there_is_an_end_to_unfinished_uploads(self, start, monkeypatch):
        monkeypatch.setattr("farm_server.transfers.uploads._MOST_UPLOADS", 2)
        async with start() as server:
            clients = [Uploader(server.http, SMALL[n:]) for n in range(3)]
            assert [(await client.try_ask()).status_code for client in clients] == [200, 200, 503]
            assert (await clients[0].finish(100)).count(201) == 1
            assert (await clients[2].finish(100)).count(201) == 1

    async def test_a_disk_that_fills_up_keeps_what_it_took(self, server, uploader, monkeypatch):
        await uploader.ask()
        real = os.pwritev

        def full(handle: int, pieces: list[bytes], at: int) -> int:
            if at >= MEBIBYTE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(handle, pieces, at)

        with monkeypatch.context() as no_room:
            no_room.setattr("os.pwritev", full)
            assert (await uploader.send(0, 1000)).status_code == 204
            answer = await uploader.send(MEBIBYTE, len(DATA))
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert "no space is left" in answer.json()["message"]
        assert await uploader.missing() == [(1000, len(DATA))]
        assert 201 in await uploader.finish(MEBIBYTE)
        assert await stored(server, uploader)

    async def test_old_uploads_are_collected(self, start):
        async with start(upload_grace_seconds=0.01, collect_seconds=0.05) as server:
            uploader = Uploader(server.http, SMALL)
            await uploader.ask()
            async with asyncio.timeout(30):
                while await uploads(server.http):  # noqa: ASYNC110  only HTTP tells
                    await asyncio.sleep(0.01)


class TestTurns:
    """Credits: who waits is told why, and comes to their turn."""

    async def test_the_third_waits_and_gets_its_turn_when_one_is_done(self, start):
        async with start(upload_credits=2) as server:
            clients = [Uploader(server.http, DATA[n:], f"c{n}") for n in range(3)]
            first, _, third = clients
            assert [(await client.ask()).state for client in clients] == [UploadState.GO] * 2 + [UploadState.WAIT]
            reply = await third.ask()
            assert (reply.ahead, reply.missing) == (2, ())
            assert reply.reason == "2 uploads are before this one; the server folds 2 at a time"
            assert reply.retry_seconds > 0
            assert (await third.send(0, MEBIBYTE)).status_code == 409
            views = {view.clients: view for view in await uploads(server.http)}
            assert (views["c2",].state, views["c2",].ahead, views["c2",].reason) == ("waiting", 2, reply.reason)
            farm = (await server.http.get("/v1/farm")).json()
            assert (farm["uploads_open"], farm["uploads_waiting"]) == (2, 1)
            assert counter(server, "farm_upload_credits_in_use") == 2
            assert counter(server, "farm_uploads_waiting") == 1
            waiting = asyncio.create_task(third.ask(wait_seconds=30))
            await first.finish(MEBIBYTE)
            assert (await waiting).state is UploadState.GO
            assert 201 in await third.finish(MEBIBYTE)

    async def test_a_dead_holders_credit_comes_back(self, start, monkeypatch):
        async with start(upload_credits=1) as server:
            dead, alive = Uploader(server.http, DATA, "dead"), Uploader(server.http, DATA[1:], "alive")
            await dead.ask()
            assert (await dead.send(0, MEBIBYTE)).status_code == 204
            assert (await alive.ask()).state is UploadState.WAIT
            monkeypatch.setattr(server.farm.uploads, "_clock", LateClock(server.farm.clock, 601))
            assert (await alive.ask()).state is UploadState.GO
            assert [view.state for view in await uploads(server.http)] == ["interrupted", "receiving"]
            assert (await dead.send(MEBIBYTE, 2 * MEBIBYTE)).status_code == 409
            assert 201 in await alive.finish(10**9)
            assert await dead.missing() == [(MEBIBYTE, len(DATA))], "what came is kept"

    async def test_small_blobs_wait_for_nobody(self, start):
        async with start(upload_credits=1) as server:
            await Uploader(server.http, DATA, "c1").ask()
            assert (await Uploader(server.http, SMALL, "c2").ask()).state is UploadState.GO

    async def test_a_mismatch_gives_the_credit_back(self, start):
        async with start(upload_credits=1) as server:
            wrong = Uploader(server.http, DATA, digest=digest_bytes(b"else"))
            await wrong.ask()
            assert 422 in await wrong.finish(10**9)
            assert (await Uploader(server.http, DATA, "c2").ask()).state is UploadState.GO

    async def test_a_shutdown_ends_the_wait(self, start):
        async with start(upload_credits=1) as server:
            await Uploader(server.http, DATA, "c1").ask()
            waiting = asyncio.create_task(Uploader(server.http, DATA[1:], "c2").try_ask(wait_seconds=30))
            async with asyncio.timeout(30):
                while not server.farm.uploads.waiting_count:  # noqa: ASYNC110  nothing rings for it
                    await asyncio.sleep(0.01)
            server.farm.bus.close()
            assert (await waiting).json()["state"] == "wait"

    async def test_the_servers_own_default_is_twice_its_threads(self, start):
        async with start(aggregator_threads=3) as server:
            assert server.farm.settings.upload_credits == 6


class TestFlow:
    """Limits, silence, and files sent without a copy."""

    async def test_uploads_and_downloads_keep_to_their_limits(self, start):
        rate, data = 400_000, DATA[:200_000]
        async with start(upload_rate=rate, client_download_rate=f"{rate}B") as server:
            began = time.monotonic()
            uploader = Uploader(server.http, data)
            assert 201 in await uploader.finish(50_000)
            uploaded = time.monotonic()
            assert (await server.http.get(f"/v1/blobs/{uploader.digest}")).content == data
            downloaded = time.monotonic()
        shortest = 0.9 * (len(data) - rate * 0.05) / rate
        assert uploaded - began > shortest
        assert downloaded - uploaded > shortest

    async def test_a_body_that_does_not_go_on_is_given_up_and_what_came_is_kept(self, server, uploader, monkeypatch):
        await uploader.ask()
        with uploader.begun(server.info.url, server.farm.tokens.farm, 0, MEBIBYTE, 999) as connection:
            await until_received(server.http, uploader.digest, 999)
            monkeypatch.setattr(bulk, "_SILENCE_SECONDS", 0.1)
            connection.sendall(DATA[999:1000])  # from its next byte on it is waited for that long
            answer = await asyncio.to_thread(connection.recv, 1000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert await uploader.missing() == [(1000, len(DATA))]

    @pytest.mark.parametrize("limit", [0, 10**12])
    async def test_a_file_is_left_to_a_server_that_can_send_it_by_itself(self, start, tmp_path, limit):
        path, sent = tmp_path / "file", []
        path.write_bytes(DATA)
        scope = {"type": "http", "method": "GET", "headers": [], "extensions": {"http.response.pathsend": {}}}

        async def send(message: dict) -> None:
            sent.append(message)

        async def receive() -> dict:
            return await asyncio.Future()

        async with start(download_rate=limit) as server:
            await BulkFile(str(path), server.farm.services.traffic, "c1", {})(scope, receive, send)
            assert counter(server, "farm_blob_bytes_total", direction="out") == len(DATA)
        if limit:
            assert b"".join(message.get("body", b"") for message in sent) == DATA
        else:
            assert sent[1] == {"type": "http.response.pathsend", "path": str(path)}

    async def test_a_blob_that_is_asked_for_counts_as_just_stored(self, server):
        uploader = Uploader(server.http, SMALL)
        await uploader.finish(100)
        path = server.farm.blobs.path(uploader.digest)
        os.utime(path, (0, 0))
        assert (
            await server.http.get(f"/v1/blobs/{uploader.digest}", headers={"Range": "bytes=0-9"})
        ).status_code == 206
        assert path.stat().st_mtime > time.time() - 60

    async def test_ranges_come_down_as_they_were_asked_for(self, server):
        uploader = Uploader(server.http, DATA)
        await uploader.finish(MEBIBYTE)
        path = f"/v1/blobs/{uploader.digest}"
        for first, last in ((0, 0), (0, MEBIBYTE), (MEBIBYTE - 1, 2 * MEBIBYTE), (5, len(DATA) - 1)):
            part = await server.http.get(path, headers={"Range": f"bytes={first}-{last}"})
            assert (part.status_code, part.content) == (206, DATA[first : last + 1])

    @pytest.mark.parametrize(("said", "taken"), [("c7", "c7"), ("x" * 99, "x" * 64), ("", "127.0.0.1")])
    async def test_a_client_names_itself(self, server, said, taken):
        uploader = Uploader(server.http, DATA, said)
        await uploader.ask()
        assert server.farm.uploads.views()[0].clients == (taken,)
