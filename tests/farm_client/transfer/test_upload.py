import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.cut_uploads import cut_carrier
from farm_client.transfer import upload as module
from farm_client.transfer.rates import RateLimit
from farm_client.transfer.upload import ONE_SHOT_BYTES, UploadListener, upload
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError, Unauthorized, Unavailable

SMALL = bytes(range(256)) * 100
LARGE = b"".join(number.to_bytes(4, "big") for number in range(700_000))
DIGEST = digest_bytes(LARGE)


@pytest.fixture(params=["memory", "file"])
def content(request, tmp_path):
    if request.param == "memory":
        return LARGE
    path = tmp_path / "update"
    path.write_bytes(LARGE)
    return path


async def test_a_small_blob_is_one_request_and_a_known_one_is_not_sent(farm, carrier):
    for _ in range(2):
        await upload(carrier, digest_bytes(SMALL), SMALL)
    assert farm.methods() == ["HEAD", "PUT", "HEAD"]
    assert farm.blobs[digest_bytes(SMALL)] == SMALL


async def test_a_small_blob_is_sent_again_after_a_failure(farm, carrier):
    farm.fail_uploads = 2
    await upload(carrier, digest_bytes(SMALL), SMALL)
    assert farm.methods().count("PUT") == 3


async def test_a_large_blob_goes_in_parts_and_a_known_one_is_not_sent(farm, carrier, content):
    counts = []
    await upload(carrier, DIGEST, content, UploadListener(meter=counts.append))
    await upload(carrier, DIGEST, content)
    assert farm.blobs[DIGEST] == LARGE
    assert farm.methods() == ["POST", "PATCH", "PATCH", "PATCH", "POST"]
    assert sorted(place for method, place in farm.requests if method == "PATCH") == [
        "bytes 0-1048575/2800000",
        "bytes 1048576-2097151/2800000",
        "bytes 2097152-2799999/2800000",
    ]
    assert counts[0] == 0
    assert counts[-1] == len(LARGE)
    assert (carrier.tally.sent_bytes, carrier.tally.sent_again_bytes) == (len(LARGE), 0)


async def test_only_what_the_farm_lacks_is_sent_after_a_break(farm, carrier, content):
    farm.parallel = 1
    farm.break_uploads_after = [600_000, 0]
    await upload(carrier, DIGEST, content)
    assert farm.blobs[DIGEST] == LARGE
    places = [place for method, place in farm.requests if method == "PATCH"]
    assert places[1].startswith("bytes 600000-")


async def test_parts_that_are_under_way_when_one_breaks_are_finished(farm, carrier):
    farm.part_bytes, farm.parallel = 100_000, 4
    farm.break_uploads_after = [50_000]
    await upload(carrier, DIGEST, LARGE)
    assert farm.blobs[DIGEST] == LARGE
    assert farm.received_bytes == len(LARGE) + 50_000  # the scripted farm reads on, and forgets, what comes after


async def test_an_upload_that_the_farm_forgot_is_begun_anew(farm, carrier):
    farm.parallel, farm.forget_uploads = 1, 1
    await upload(carrier, DIGEST, LARGE)
    assert farm.blobs[DIGEST] == LARGE
    assert farm.methods().count("POST") == 2


async def test_it_waits_for_its_turn_and_says_why(farm, carrier):
    farm.waits = ["3 uploads are before it", ""]
    heard = []
    await upload(carrier, DIGEST, LARGE, UploadListener(waits=heard.append))
    assert heard == ["3 uploads are before it", "3 uploads are before it", None]
    assert farm.methods()[:3] == ["POST"] * 3


async def test_an_upload_that_never_gets_anywhere_is_given_up(farm, carrier):
    farm.fail_uploads = 10**6
    with pytest.raises(Unavailable, match="after 4 tries"):
        await upload(carrier, DIGEST, LARGE)


async def test_an_upload_that_gets_a_little_further_each_time_is_not(farm, carrier):
    farm.parallel = 1
    farm.break_uploads_after = [1000] * 10
    await upload(carrier, DIGEST, LARGE)
    assert farm.blobs[DIGEST] == LARGE


async def test_bytes_that_are_not_their_digest_are_refused(farm, carrier):
    wrong = digest_bytes(b"other")
    with pytest.raises(DigestMismatch):
        await upload(carrier, wrong, LARGE)
    with pytest.raises(DigestMismatch):
        await upload(carrier, wrong, SMALL)
    assert wrong not in farm.blobs


async def test_a_cut_on_purpose_is_survived(farm, carrier):
    cuts = itertools.count()

    async def midway(_url):
        return next(cuts) < 2

    farm.parallel = 1
    await upload(cut_carrier(carrier, midway), DIGEST, LARGE)
    assert farm.blobs[DIGEST] == LARGE


@pytest.mark.parametrize("size", [ONE_SHOT_BYTES, ONE_SHOT_BYTES + 1])
async def test_the_largest_blob_of_one_request(farm, carrier, size):
    data = b"x" * size
    await upload(carrier, digest_bytes(data), data)
    assert ("PUT" in farm.methods()) == (size == ONE_SHOT_BYTES)
    assert farm.blobs[digest_bytes(data)] == data


async def test_a_file_that_becomes_shorter_is_told(farm, carrier, tmp_path):
    path = tmp_path / "update"
    path.write_bytes(LARGE)
    farm.parallel = 1

    async def shorten(_url):
        path.write_bytes(b"")
        return False

    with pytest.raises(FarmError, match="became shorter"):
        await upload(cut_carrier(carrier, shorten), DIGEST, path)


async def test_a_file_that_is_gone_is_an_os_error(carrier, tmp_path):
    with pytest.raises(FileNotFoundError):
        await upload(carrier, DIGEST, tmp_path / "gone")


async def test_a_cancelled_upload_holds_nothing(farm, carrier, tmp_path):
    path = tmp_path / "update"
    path.write_bytes(LARGE)
    begun = asyncio.Event()

    async def midway(_url):
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(upload(cut_carrier(carrier, midway), DIGEST, path))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert path not in {Path(file.path) for file in psutil.Process().open_files()}
    await upload(carrier, DIGEST, path)
    assert farm.blobs[DIGEST] == LARGE


async def test_a_wrong_token_is_not_tried_again(farm, carrier):
    farm.refuse_with = 401
    with pytest.raises(Unauthorized):
        await upload(carrier, DIGEST, LARGE)
    assert len(farm.requests) == 1


NONSENSE = [
    '{"state": "go", "missing": [[0, 5]], "parallel": 1}',
    '{"state": "go", "missing": [[5, 5]], "parallel": 1, "part_bytes": 100}',
    '{"state": "go", "missing": [[-5, 5]], "parallel": 1, "part_bytes": 100}',
    '{"state": "go", "missing": [[0, 1e18]], "parallel": 1, "part_bytes": 100}',
]


@pytest.mark.parametrize("nonsense", ["{}", "{", *NONSENSE])
async def test_an_answer_that_makes_no_sense_is_told(farm, carrier, nonsense):
    farm.answers = [nonsense]
    with pytest.raises(FarmError, match="update one of the two"):
        await upload(carrier, DIGEST, LARGE)


async def test_the_limit_holds(carrier):
    limited = replace(carrier, upload_rate=RateLimit(5_000_000))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await upload(limited, DIGEST, LARGE)
    assert loop.time() - began >= 0.95 * (len(LARGE) - 500_000) / 5_000_000


@pytest.mark.parametrize("page", ["<html>the hotel's page</html>", "", "[", "null"])
async def test_a_page_in_the_farms_place_passes(farm, carrier, page):
    farm.answers = [page]
    await upload(carrier, DIGEST, LARGE)
    assert farm.blobs[DIGEST] == LARGE


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-Infinity", "-5", "0", "1e308", "5"])
async def test_a_turn_at_an_odd_time_is_refused_or_waited_for_in_a_sane_one(farm, carrier, monkeypatch, seconds):
    monkeypatch.setattr(module, "_MOST_RETRY_SECONDS", 0.05)
    farm.answers = [f'{{"state": "wait", "retry_seconds": {seconds}}}']
    refused = None
    async with asyncio.timeout(4):
        try:
            await upload(carrier, DIGEST, LARGE)
        except FarmError as error:
            refused = error
    assert "update one of the two" in refused.message if refused else farm.blobs[DIGEST] == LARGE


async def test_a_farm_that_asks_for_a_million_at_once_gets_some_and_a_byte_at_a_time_is_cheap(farm, carrier):
    farm.parallel = 10**6
    await upload(carrier, DIGEST, LARGE)
    farm.answers = [f'{{"state": "go", "missing": [[0, {len(LARGE)}]], "parallel": 2, "part_bytes": 1}}']
    farm.forget_uploads = 10**6
    with pytest.raises(FarmError):
        await upload(carrier, digest_bytes(LARGE + b"x"), LARGE + b"x")


@pytest.mark.parametrize("status", [200, 204])
async def test_a_success_that_does_not_say_stored_is_asked_again(farm, carrier, status):
    """A page of a hotel answers 200 to everything."""
    farm.pretend = [status, status]
    await upload(carrier, digest_bytes(SMALL), SMALL)
    assert farm.blobs[digest_bytes(SMALL)] == SMALL
