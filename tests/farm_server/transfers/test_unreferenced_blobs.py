"""What nobody relies on has a bound for each volunteer, and gives way to others where the disk is short."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_server.environment.disk_space import LOOK_BYTES, DiskSpace, Promise
from farm_server.transfers.unreferenced_blobs import UnreferencedBlobs, UnusedBlobs
from protocol.digests import digest_bytes
from protocol.errors import Unavailable
from storage.blobs import FolderBlobStore
from storage.owner import settle_owner
from storage.ports.ledger import LedgerIdentity
from tests.farm_server import model

MEBIBYTE = 1024**2


class Disk:
    """A disk of this size, as ``shutil.disk_usage`` sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
        self.free = free_bytes
        self.now = 0.0
        monkeypatch.setattr("shutil.disk_usage", lambda _: self)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, 1000 * MEBIBYTE)


@pytest.fixture
def room(disk: Disk, tmp_path: Path) -> DiskSpace:
    return DiskSpace(tmp_path, 100 * MEBIBYTE, lambda: disk.now)


def arrives(promise: Promise, disk: Disk) -> bool:
    """Let a mebibyte come and be written; false if it is refused."""
    disk.free -= MEBIBYTE
    try:
        promise.took(MEBIBYTE)
    except Unavailable:
        return False
    return True


def test_what_was_let_in_counts_as_taken_until_it_has_come(room: DiskSpace, disk: Disk) -> None:
    with room.promised(600 * MEBIBYTE) as promise:
        assert room.lacks(300 * MEBIBYTE) is None
        assert room.lacks(301 * MEBIBYTE) is not None
        with pytest.raises(Unavailable), room.promised(301 * MEBIBYTE):
            pass
        promise.took(400 * MEBIBYTE)
        disk.free -= 400 * MEBIBYTE  # it is on the disk now
        assert room.lacks(300 * MEBIBYTE) is None
        assert room.lacks(301 * MEBIBYTE) is not None
    assert room.lacks(500 * MEBIBYTE) is None  # the rest never came


def test_a_promise_that_is_not_kept_keeps_nobody_out(room: DiskSpace, disk: Disk) -> None:
    with room.promised(800 * MEBIBYTE) as promise:
        for _ in range(5):
            disk.now += 4
            promise.took(1)
        assert room.lacks(800 * MEBIBYTE) is None


def test_a_body_without_a_length_is_looked_after_piece_by_piece(room: DiskSpace, disk: Disk) -> None:
    with room.promised(None) as promise:
        assert not all(arrives(promise, disk) for _ in range(1000))
    assert disk.free >= 100 * MEBIBYTE


def test_a_length_that_was_a_lie_is_noticed_before_the_reserve_is_gone(room: DiskSpace, disk: Disk) -> None:
    """Somebody else fills the disk meanwhile."""
    with room.promised(500 * MEBIBYTE) as promise:
        disk.free = 100 * MEBIBYTE + LOOK_BYTES
        assert not all(arrives(promise, disk) for _ in range(500))
        assert disk.free > 50 * MEBIBYTE


BLOBS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.floats(0, 100)), max_size=30)


@given(BLOBS, st.integers(0, 1000))
def test_surplus_leaves_no_more_than_the_share_and_the_newest(blobs: list, most: int) -> None:
    book = UnusedBlobs()
    for number, (owner, size, at) in enumerate(blobs):
        book.stored(owner, f"{number}", size, at)
    for owner in "abc":
        own = [(f"{n}", size) for n, (who, size, _) in enumerate(blobs) if who == owner]
        gone = book.surplus(owner, most)
        left = [size for name, size in own if name not in gone]
        assert gone == [name for name, _ in own][: len(gone)], "the oldest first"
        assert sum(left) <= most or len(left) == 1 or not own
        assert not gone or sum(left) + dict(own)[gone[-1]] > most, "and no more than that"


@given(BLOBS, st.integers(1, 1000))
def test_room_is_made_at_the_cost_of_who_has_most_or_not_at_all(blobs: list, missing: int) -> None:
    book = UnusedBlobs()
    for number, (owner, size, _) in enumerate(blobs):
        book.stored(owner, f"{number}", size, 0.0)
    gone = book.to_make_room(missing, 1000.0)
    sizes = {f"{n}": size for n, (_, size, _) in enumerate(blobs)}
    if gone:
        assert sum(sizes[name] for name in gone) >= missing
        totals = {o: sum(size for who, size, _ in blobs if who == o) for o, _, _ in blobs}
        assert blobs[int(gone[0])][0] == max(totals, key=lambda o: totals[o]) or len(set(totals.values())) < len(totals)
    else:
        assert sum(sizes.values()) < missing
    assert book.to_make_room(missing, 5.0) == [], "young ones stay"


def test_what_is_relied_on_is_nobody_s_to_lose() -> None:
    book = UnusedBlobs()
    book.stored("a", "x", 10, 0.0)
    book.stored("a", "y", 10, 0.0)
    book.used("x")
    assert (book.bytes_of("a"), book.to_make_room(10, 1000.0), book.surplus("a", 0)) == (10, ["y"], [])


def test_a_stray_of_an_earlier_life_goes_before_anybody_s() -> None:
    book = UnusedBlobs()
    book.stored("a", "a1", 500, 0.0)
    book.stored("", "stray-1", 10, -50.0)
    book.stored("", "stray-2", 10, -40.0)
    assert book.to_make_room(15, 1000.0) == ["stray-1", "stray-2"]
    assert book.to_make_room(25, 1000.0) == ["stray-1", "stray-2", "a1"]


class NothingIsReferenced:
    def __init__(self, *digests: str) -> None:
        self.digests = set(digests)

    async def referenced_digests(self) -> set[str]:
        return self.digests


def aged(store: FolderBlobStore, data: bytes, seconds: float) -> str:
    """Store a blob as an earlier life did."""
    digest = store.put_bytes(data).digest
    then = time.time() - seconds
    os.utime(store.path(digest), (then, then))
    return digest


async def test_strays_go_as_soon_as_the_disk_is_short_and_only_those(disk: Disk, tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    older, newer = aged(store, b"o" * 1000, 300.0), aged(store, b"n" * 1000, 200.0)
    needed, asked_for = aged(store, b"needed" * 500, 400.0), aged(store, b"asked" * 500, 500.0)
    unreferenced = UnreferencedBlobs(store, NothingIsReferenced(needed), DiskSpace(tmp_path, 100 * MEBIBYTE))
    await unreferenced.find_strays()
    await unreferenced.make_room(1000)
    assert store.has(older), "there is room enough"
    store.renew(asked_for)  # a researcher's, who goes on with an upload that the restart had cut
    uploaded_since = store.put_bytes(b"u" * 1000).digest
    disk.free = 100 * MEBIBYTE
    await unreferenced.make_room(900)
    assert [store.has(d) for d in (older, newer, needed, asked_for, uploaded_since)] == [False, True, True, True, True]
    await unreferenced.make_room(900)
    assert [store.has(d) for d in (older, newer, needed, asked_for, uploaded_since)] == [False, False, True, True, True]


async def test_what_a_lost_ledger_may_refer_to_is_no_stray(disk: Disk, tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    kept = aged(store, b"k" * 1000, 300.0)
    for ledger in ("a ledger", "another ledger"):
        settle_owner(tmp_path, LedgerIdentity(ledger, 1), is_new=False, now=time.time())
    unreferenced = UnreferencedBlobs(store, NothingIsReferenced(), DiskSpace(tmp_path, 100 * MEBIBYTE))
    await unreferenced.find_strays()
    disk.free = 100 * MEBIBYTE
    await unreferenced.make_room(900)
    assert store.has(kept)


async def test_an_upload_is_let_in_where_an_earlier_life_had_filled_the_disk(start, monkeypatch):
    async with start() as server:
        strays = [aged(server.farm.blobs, os.urandom(40_000), 100.0 + n) for n in range(5)]
        monkeypatch.setattr(server.farm.unreferenced, "_began_at", time.time() - 50)
        await server.farm.unreferenced.find_strays()
        full = server.farm.disk_space
        spare = [0]
        monkeypatch.setattr(full, "spare_bytes", lambda: spare[0])
        monkeypatch.setattr(full, "lacks", lambda size=0: "the disk is full" if size > freed() else None)

        def freed() -> int:
            return sum(40_000 for digest in strays if not server.farm.blobs.has(digest))

        assert (await put(server.http, os.urandom(50_000))).status_code == 201
        assert [server.farm.blobs.has(digest) for digest in strays] == [True, True, True, False, False]


async def test_people_are_told_that_a_task_waits_for_the_disk_where_only_large_blobs_do_not_fit(start, monkeypatch):
    async with start() as server:
        task_id = await model.submit(server.http)
        room = server.farm.disk_space
        short_of = room._short_of
        monkeypatch.setattr(room, "_short_of", lambda n: "only 4.2 MiB are free" if n > 2**30 else short_of(n))
        request = {"size_bytes": 2**31}
        answer = await server.http.post(f"/v1/blobs/{'a' * 64}/upload", json=request)
        assert answer.status_code == 503
        async with asyncio.timeout(30):
            while "only 4.2 MiB" not in (why := (await server.http.get(f"/v1/tasks/{task_id}/why")).json()["why"]):
                pass
        assert "it waits for the server: only 4.2 MiB are free" in why


def test_a_refusal_is_forgotten_after_a_while(room: DiskSpace, disk: Disk) -> None:
    with pytest.raises(Unavailable), room.promised(2000 * MEBIBYTE):
        pass
    assert room.lacks() is None
    assert room.refused() is not None
    disk.now += 31
    assert room.refused() is None


def volunteers_http(server) -> httpx.AsyncClient:
    return server.client(headers={"Authorization": f"Bearer {server.farm.tokens.join}"})


async def put(http: httpx.AsyncClient, data: bytes, client: str = "") -> httpx.Response:
    return await http.put(f"/v1/blobs/{digest_bytes(data)}", content=data, headers={"X-Farm-Client": client})


async def test_a_hoarder_loses_its_oldest_and_nobody_else_does(start, monkeypatch):
    async with start() as server, volunteers_http(server) as http, server.volunteer("greedy"):
        monkeypatch.setattr(server.farm.disk_space, "spare_bytes", lambda: 80_000)
        other = os.urandom(1000)
        assert (await put(server.http, other)).status_code == 201  # a researcher's
        hoard = [os.urandom(5_000) for _ in range(10)]
        for data in hoard:
            assert (await put(http, data, "greedy")).status_code == 201
        kept = [server.farm.blobs.has(digest_bytes(data)) for data in hoard]
        assert kept == [False] * 8 + [True] * 2  # an eighth of what is spare, its own included
        assert server.farm.blobs.has(digest_bytes(other))


async def test_a_blob_that_a_task_refers_to_outlives_the_hoard_it_was_in(start, monkeypatch):
    async with start() as server, volunteers_http(server) as http:
        monkeypatch.setattr(server.farm.disk_space, "spare_bytes", lambda: 0)
        for data in (model.CODE, model.SHARD, model.weights()):
            await put(http, data)
        task_id = await model.submit(server.http)
        for _ in range(5):
            await put(http, os.urandom(100))
        assert server.farm.blobs.has(digest_bytes(model.SHARD))
        assert (await server.http.get(f"/v1/tasks/{task_id}")).status_code == 200


async def test_a_longer_body_than_there_is_room_for_is_refused_at_once(start):
    async with start(max_blob_bytes=2**60) as server:
        reader, writer = await asyncio.open_connection(*server.info.url.removeprefix("http://").split(":"))
        writer.write(
            f"PUT /v1/blobs/{'a' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.farm.tokens.join}\r\n"
            f"Content-Length: {2**59}\r\n\r\n".encode()
        )
        async with asyncio.timeout(10):
            answer = await reader.readline()
        assert b"503" in answer
        writer.close()
        assert list((server.farm.settings.data_dir / "blobs" / "tmp").iterdir()) == []
