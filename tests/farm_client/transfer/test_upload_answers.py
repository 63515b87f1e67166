"""Uploads against a farm without a socket: parts in any order, lost at random, forgotten, refused; no byte too few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.transfer import upload as uploads
from farm_client.transfer.carrier import Carrier
from farm_client.transfer.upload import UploadListener, upload
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError, Unavailable
from protocol.ranges import ByteRange, ByteRanges, ContentRange
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState
from protocol.retry import RetryPolicy

DATA = bytes(range(200)) * 2
DIGEST = digest_bytes(DATA)
AT_ONCE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=5)
Answer = Callable[[], httpx.Response]


@pytest.fixture(autouse=True)
def _all_blobs_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "ONE_SHOT_BYTES", 0)


@dataclass
class Farm:
    """Keeps what parts bring. ``spoils`` is asked before each part: whether it is lost on the way."""

    part_bytes: int = 64
    parallel: int = 3
    spoils: Callable[[], bool] = lambda: False
    answers: list[UploadReply] = field(default_factory=list)
    """What is answered first to the question what is missing."""
    refuses: list[Answer] = field(default_factory=list)
    """What the next parts are answered with, instead of being taken."""
    here: ByteRanges = field(default_factory=ByteRanges)
    data: bytearray = field(default_factory=lambda: bytearray(len(DATA)))
    came: Counter[int] = field(default_factory=Counter)
    """How often each byte came."""
    questions: list[UploadRequest] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if request.method == "POST":
            self.questions.append(UploadRequest.model_validate_json(body))
            return httpx.Response(200, json=self._reply().model_dump(mode="json"))
        place = ContentRange.parse(request.headers["content-range"])
        assert place.end - place.start == len(body) == int(request.headers["content-length"]) <= self.part_bytes
        if self.spoils():
            raise httpx.WriteError("the line broke")
        if self.refuses:
            return self.refuses.pop(0)()
        self.data[place.start : place.end] = body
        self.here.add(place.start, place.end)
        self.came.update(range(place.start, place.end))
        return httpx.Response(201 if self.here.total_bytes == len(DATA) else 204)

    def _reply(self) -> UploadReply:
        if self.answers:
            return self.answers.pop(0)
        if self.here.total_bytes == len(DATA):
            return UploadReply(state=UploadState.STORED)
        missing = tuple(self.here.missing(len(DATA)))
        return UploadReply(state=UploadState.GO, missing=missing, part_bytes=self.part_bytes, parallel=self.parallel)


async def send(
    farm: Farm, content: bytes | Path = DATA, listener: UploadListener | None = None
) -> tuple[bool, Carrier]:
    async with httpx.AsyncClient(base_url="http://farm", transport=httpx.MockTransport(farm)) as http:
        with httpx.Client(base_url="http://farm") as bulk:
            carrier = Carrier(http, bulk, AT_ONCE, draw=lambda: 0.0)
            return await upload(carrier, DIGEST, content, listener), carrier


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), part_bytes=st.integers(60, 500), parallel=st.integers(1, 6))
async def test_however_parts_are_cut_and_lost_the_farm_gets_every_byte_and_none_twice(
    seed: int, part_bytes: int, parallel: int
) -> None:
    rng = Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "ONE_SHOT_BYTES", 0)
        farm = Farm(part_bytes, parallel, spoils=lambda: rng.random() < 0.2)
        try:
            has_sent, carrier = await send(farm)
        except Unavailable:
            return  # the line was worse than the tries allow: another law says when
    assert has_sent
    assert bytes(farm.data) == DATA
    assert set(farm.came.values()) == {1}, "what the farm has is not sent again"
    assert carrier.tally.sent_bytes >= len(DATA)
    assert carrier.tally.sent_bytes - carrier.tally.sent_again_bytes == len(DATA)


@given(kept=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=6))
@settings(max_examples=8, deadline=None)
async def test_only_what_the_farm_lacks_leaves_this_machine(kept: list[tuple[int, int]]) -> None:
    farm = Farm()
    for start, end in kept:
        farm.here.add(min(start, end), max(start, end))
        farm.data[min(start, end) : max(start, end)] = DATA[min(start, end) : max(start, end)]
    lacking = len(DATA) - farm.here.total_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "ONE_SHOT_BYTES", 0)
        has_sent, carrier = await send(farm)
    assert bytes(farm.data) == DATA
    assert carrier.tally.sent_bytes == lacking
    assert has_sent is (lacking > 0)


async def test_a_line_that_brings_nothing_is_given_up_after_so_many_tries() -> None:
    farm = Farm(spoils=lambda: True)
    with pytest.raises(Unavailable, match=f"cannot send blob {DIGEST[:12]} after {AT_ONCE.tries} tries: the line"):
        await send(farm)
    assert len(farm.questions) == AT_ONCE.tries, "each try asks anew what is missing"


async def test_who_waits_for_a_turn_lets_the_answer_be_held_back_and_hears_why() -> None:
    heard: list[str | None] = []
    waits = [
        UploadReply(state=UploadState.WAIT, ahead=3, retry_seconds=0.0),
        UploadReply(state=UploadState.WAIT, ahead=1, reason="1 upload is before this one", retry_seconds=0.0),
    ]
    farm = Farm(answers=waits)
    assert (await send(farm, listener=UploadListener(waits=heard.append)))[0]
    assert heard == ["3 uploads are before it", "1 upload is before this one", None]
    assert [one.wait_seconds for one in farm.questions] == [0.0, 10.0, 10.0]
    assert all(one.size_bytes == len(DATA) for one in farm.questions)


@pytest.mark.parametrize(
    "nonsense",
    [
        UploadReply(state=UploadState.GO, missing=(ByteRange(0, len(DATA) + 1),), part_bytes=9, parallel=1),
        UploadReply(state=UploadState.GO, missing=(ByteRange(5, 5),), part_bytes=9, parallel=1),
        UploadReply(state=UploadState.GO, missing=(ByteRange(9, 5),), part_bytes=9, parallel=1),
        UploadReply(state=UploadState.GO, missing=(ByteRange(0, 9),), part_bytes=0, parallel=1),
        UploadReply(state=UploadState.GO, missing=(ByteRange(0, 9),), part_bytes=9, parallel=0),
    ],
)
async def test_a_wish_that_cannot_be_met_is_not_guessed_at(nonsense: UploadReply) -> None:
    farm = Farm(answers=[nonsense])
    with pytest.raises(FarmError, match="not one that this version understands"):
        await send(farm)
    assert not farm.came


def damaged() -> httpx.Response:
    return httpx.Response(422, json={"code": "digest_mismatch", "message": "it hashes to another name"})


async def test_damage_on_the_way_is_sent_once_more_and_then_told() -> None:
    assert (await send(Farm(refuses=[damaged], parallel=1)))[0]
    with pytest.raises(DigestMismatch, match="another name"):
        await send(Farm(refuses=[damaged] * 2, parallel=1))


async def test_the_meter_never_passes_the_whole_and_ends_there(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    counts: list[int] = []
    farm = Farm(part_bytes=50)
    farm.here.add(0, 100)
    farm.data[:100] = DATA[:100]
    await send(farm, tmp_path / "blob", UploadListener(meter=counts.append))
    assert counts[0] == 100
    assert counts == sorted(counts)
    assert counts[-1] == len(DATA)


async def test_a_farm_that_has_it_is_sent_nothing() -> None:
    farm = Farm(answers=[UploadReply(state=UploadState.STORED)])
    has_sent, carrier = await send(farm)
    assert (has_sent, carrier.tally.sent_bytes, farm.came) == (False, 0, Counter())
