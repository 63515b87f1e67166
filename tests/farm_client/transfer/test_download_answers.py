"""Downloads against answers of every kind, without a socket: cut at any byte, with wrong ranges, or a stranger's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.transfer import download as downloads
from farm_client.transfer.carrier import Carrier
from farm_client.transfer.download import download
from farm_client.transfer.partial_file import PartialFile
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError, NotFound, Unauthorized, Unavailable
from protocol.retry import RetryPolicy

DATA = bytes(range(48))
DIGEST = digest_bytes(DATA)
AT_ONCE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=3)


class Cut(httpx.SyncByteStream):
    """A body that ends with the connection."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self._data), 7):
            yield self._data[at : at + 7]
        raise httpx.ReadError("the line broke")


@dataclass
class Farm:
    """Answers with the blob, or as a script says: one entry for each request."""

    script: list[Callable[[slice], httpx.Response]] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    served_bytes: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        header = request.headers.get("range")
        self.asked.append(header)
        wanted = slice(0, len(DATA))
        if header is not None:
            first, _, last = header.removeprefix("bytes=").partition("-")
            wanted = slice(int(first), int(last) + 1)
        return self.script.pop(0)(wanted) if self.script else part(wanted)


def sent(status: int, data: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return an answer that is still to be read, as one from a connection is."""
    return httpx.Response(status, stream=httpx.ByteStream(data), headers=headers)


def part(wanted: slice, data: bytes = DATA) -> httpx.Response:
    """Answer as a farm does: a part of the blob as a part, all of it as a whole."""
    whole = wanted == slice(0, len(data))
    headers = {} if whole else {"content-range": f"bytes {wanted.start}-{wanted.stop - 1}/{len(data)}"}
    return sent(200 if whole else 206, data[wanted], headers)


def cut_after(count: int) -> Callable[[slice], httpx.Response]:
    def answer(wanted: slice) -> httpx.Response:
        whole = part(wanted)
        body = Cut(DATA[wanted][:count])
        return httpx.Response(whole.status_code, stream=body, headers={**whole.headers})

    return answer


async def fetch(farm: Farm, path: Path) -> tuple[bytes, Carrier]:
    with httpx.Client(base_url="http://farm", transport=httpx.MockTransport(farm)) as bulk:
        async with httpx.AsyncClient(base_url="http://farm") as http:
            carrier = Carrier(http, bulk, AT_ONCE, draw=lambda: 0.0)
            await download(carrier, DIGEST, PartialFile(path, len(DATA)))
    return await asyncio.to_thread(path.read_bytes), carrier


@pytest.mark.parametrize("at", range(len(DATA) + 1))
async def test_a_download_is_resumed_at_whichever_byte_it_was_cut(tmp_path: Path, at: int) -> None:
    farm = Farm([cut_after(at)])
    data, carrier = await fetch(farm, tmp_path / "blob")
    assert data == DATA
    assert farm.asked[0] is None
    if 0 < at < len(DATA):
        assert farm.asked[1:] == [f"bytes={at}-{len(DATA) - 1}"]
    assert (carrier.tally.received_bytes, carrier.tally.received_again_bytes) == (len(DATA), 0)


@pytest.mark.parametrize("at", [1, 17, 47])
async def test_what_an_earlier_process_left_is_gone_on_with(tmp_path: Path, at: int) -> None:
    first = Farm([cut_after(at), *[cut_after(0)] * AT_ONCE.tries])  # type: ignore[list-item]
    with pytest.raises(Unavailable, match="3 tries: the line broke"):
        await fetch(first, tmp_path / "blob")
    second = Farm()
    assert (await fetch(second, tmp_path / "blob"))[0] == DATA
    assert second.asked == [f"bytes={at}-{len(DATA) - 1}"]


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=6), part_bytes=st.integers(5, 60))
async def test_however_small_the_parts_and_wherever_they_are_cut_each_byte_comes_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], part_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "PART_BYTES", part_bytes)
        farm = Farm([cut_after(count + 1) for count in cuts])
        data, carrier = await fetch(farm, tmp_path_factory.mktemp("blobs") / "blob")
    assert data == DATA
    assert carrier.tally.received_again_bytes == 0
    assert carrier.tally.received_bytes == len(DATA)


def other(status: int, **headers: str) -> Callable[[slice], httpx.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda wanted: sent(status, DATA[wanted], named)


def refused(status: int) -> Callable[[slice], httpx.Response]:
    return lambda _: httpx.Response(status, json={"code": "refused", "message": f"no, says the farm: {status}"})


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (other(206, content_range="bytes 0-47/49"), DigestMismatch, "has 49 bytes and not 48"),
        (other(200, content_length="49"), DigestMismatch, "has 49 bytes and not 48"),
        (other(416, content_range="bytes */47"), DigestMismatch, "has 47 bytes and not 48"),
        (refused(401), Unauthorized, "token"),
        (refused(403), Unauthorized, "token"),
        (refused(404), NotFound, "may have ended"),
        (refused(422), DigestMismatch, "no, says the farm"),
        (refused(400), FarmError, "the farm refused blob"),
    ],
)
async def test_an_answer_that_no_other_try_mends_ends_it_at_once(
    tmp_path: Path, answer: Callable[[slice], httpx.Response], error: type[FarmError], said: str
) -> None:
    farm = Farm([answer])
    with pytest.raises(error, match=said):
        await fetch(farm, tmp_path / "blob")
    assert len(farm.asked) == 1
    assert not (tmp_path / "blob").exists() or (tmp_path / "blob").stat().st_size == 0


@pytest.mark.parametrize(
    "answer",
    [
        refused(503),
        refused(429),
        refused(408),
        refused(409),
        refused(500),
        lambda _: httpx.Response(502, text="<html>a proxy</html>"),
        lambda _: httpx.Response(403, text="<html>sign in to the hotel's network</html>"),
        other(200, content_type="text/html"),
        other(206, content_range="bytes */*", content_type="text/plain"),
        lambda wanted: sent(200, DATA[wanted][:-1]),
        lambda _: sent(200, b""),
    ],
)
async def test_what_passes_or_comes_from_a_stranger_is_tried_again(
    tmp_path: Path, answer: Callable[[slice], httpx.Response]
) -> None:
    farm = Farm([answer])
    with suppress(DigestMismatch):
        assert (await fetch(farm, tmp_path / "blob"))[0] == DATA
        assert len(farm.asked) == 2


async def test_a_whole_blob_in_answer_to_a_range_is_used_from_its_start(tmp_path: Path) -> None:
    farm = Farm([cut_after(10), lambda _: part(slice(0, len(DATA)))])
    data, carrier = await fetch(farm, tmp_path / "blob")
    assert data == DATA
    assert carrier.tally.received_again_bytes == 10, "the bytes before the range came once more"


async def test_a_body_that_is_longer_than_was_asked_for_is_read_no_further(tmp_path: Path) -> None:
    farm = Farm([lambda wanted: httpx.Response(200, stream=Cut(DATA[wanted] + b"more" * 1000))])
    data, carrier = await fetch(farm, tmp_path / "blob")
    assert data == DATA
    assert carrier.tally.received_bytes == len(DATA)


async def test_bytes_of_another_place_are_found_by_the_digest_and_fetched_anew(tmp_path: Path) -> None:
    """The header says the range that was asked for, the body is of another one."""
    moved = DATA[10:] + DATA[:10]
    farm = Farm([lambda wanted: part(wanted, moved)])
    assert (await fetch(farm, tmp_path / "blob"))[0] == DATA
    twice = Farm([lambda wanted: part(wanted, moved)] * 2)
    with pytest.raises(DigestMismatch, match="arrived damaged twice"):
        await fetch(twice, tmp_path / "other")
