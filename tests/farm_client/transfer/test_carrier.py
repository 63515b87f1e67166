import asyncio

import httpx
import pytest

from farm_client.transfer.carrier import Carrier, Interrupted, check, in_parallel
from protocol.errors import DigestMismatch, FarmError, NotFound, Unauthorized, Unavailable
from protocol.retry import RetryPolicy

THRICE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=3)


@pytest.fixture
async def patient():
    async with httpx.AsyncClient() as http:
        with httpx.Client() as bulk:
            yield Carrier(http, bulk, THRICE)


def failing(*errors):
    """An attempt that fails in these ways, one after another, and then succeeds."""
    left = list(errors)

    async def attempt():
        if left:
            raise left.pop(0)

    return attempt


async def test_an_attempt_that_succeeds_in_time_is_all_that_is_wanted(patient):
    await patient.persist(failing(Interrupted("cut"), httpx.ReadError("reset")), lambda: 0, "cannot")


async def test_the_last_reason_is_told_and_kept(patient):
    last = httpx.ReadTimeout("")
    with pytest.raises(Unavailable, match="cannot move after 3 tries: ReadTimeout") as told:
        await patient.persist(failing(Interrupted("cut"), Interrupted("cut"), last), lambda: 0, "cannot move")
    assert told.value.__cause__ is last


async def test_progress_excuses_the_failures_before_it(patient):
    reached = iter([0, *(step for n in range(1, 20) for step in (n, n)), *[20] * 99])
    await patient.persist(failing(*[Interrupted("cut")] * 15), lambda: next(reached), "cannot")


async def test_what_another_try_does_not_mend_is_raised_at_once(patient):
    with pytest.raises(NotFound):
        await patient.persist(failing(NotFound("gone")), lambda: 0, "cannot")


async def test_no_more_are_under_way_than_allowed_and_each_is_done_once():
    done, under_way, most = [], 0, 0

    async def work(item):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        done.append(item)

    await in_parallel(range(20), 3, work)
    assert (sorted(done), most) == (list(range(20)), 3)
    await in_parallel([], 3, work)


async def test_an_interruption_lets_those_under_way_finish_and_begins_no_other():
    all_begun, interrupted, done = asyncio.Event(), asyncio.Event(), []

    async def work(item):
        if item == 0:
            await all_begun.wait()
            interrupted.set()
            raise Interrupted("cut")
        if item == 2:
            all_begun.set()
        await interrupted.wait()
        done.append(item)

    with pytest.raises(Interrupted):
        await in_parallel(range(10), 3, work)
    assert sorted(done) == [1, 2]


async def test_any_other_error_ends_those_under_way_and_keeps_its_cause():
    cause = OSError("the disk")

    async def work(item):
        if item == 2:
            raise FarmError("refused") from cause
        await asyncio.Event().wait()

    with pytest.raises(FarmError, match="refused") as told:
        await in_parallel(range(10), 3, work)
    assert told.value.__cause__ is cause


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (408, Interrupted),
        (409, Interrupted),
        (413, FarmError),
        (422, DigestMismatch),
        (429, Interrupted),
        (500, Interrupted),
        (503, Interrupted),
    ],
)
async def test_every_refusal_of_the_farm_is_an_error_of_its_kind(status, error):
    body = b'{"code": "x", "message": "the farm\'s words"}'
    with pytest.raises(error) as told:
        await check(httpx.Response(status, content=body), "ab" * 32)
    if status not in (401, 403, 404):
        assert "the farm's words" in str(told.value)


@pytest.mark.parametrize("status", [101, 300, 301, 302, 304, 400, 401, 403, 404, 407, 413, 418, 422, 500, 502, 599])
@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"message": 3}'])
async def test_a_refusal_in_other_words_is_a_strangers_and_passes(status, body):
    with pytest.raises(Interrupted, match=str(status)):
        await check(httpx.Response(status, content=body), "ab" * 32)


async def test_success_is_no_error():
    await check(httpx.Response(204), "ab" * 32)
