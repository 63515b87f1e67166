"""What is kept of the step in which the task's code failed is stored at the farm before the failure is told."""

import pytest

from farm_client.agent.work.failed_steps import FailedSteps
from protocol.assignments import Progress, Reject
from protocol.digests import digest_bytes
from protocol.messages import Error
from tests.farm_client.agent.scripted_farm import joined

KEPT = "state and batch"


def assigned(farm, limit_bytes=1 << 20, round_number=0, **config):
    task = farm.task(doing="fail_and_keep", **{"kept": KEPT} | config)
    return farm.assign(task, round_number=round_number).model_copy(update={"failed_step_bytes": limit_bytes})


def notes(peer):
    return [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs if line.stream == "agent"]


async def failure(farm, peer, **options):
    await peer.send(assigned(farm, **options))
    return await peer.expect(Error)


async def test_it_is_stored_and_then_named(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        error = await failure(farm, peer)
        assert farm.blobs[error.failed_step.digest] == KEPT.encode()
    assert (error.failed_step.digest, error.failed_step.size_bytes) == (digest_bytes(KEPT.encode()), len(KEPT))
    assert (error.code, error.message) == ("task_code", "boom")


async def test_the_same_failure_is_stored_once(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        messages = ["t.py:3, in loss: row 1", "t.py:3, in loss: row 2", "t.py:4, in loss: row 1"]
        errors = [await failure(farm, peer, round_number=number, messages=messages) for number in range(3)]
    assert [error.message for error in errors] == messages
    assert [error.failed_step is None for error in errors] == [False, True, False]
    assert digest_bytes(f"{KEPT}!".encode()) not in farm.blobs


@pytest.mark.parametrize("limit_bytes", [0, len(KEPT) - 1])
async def test_no_more_is_stored_than_the_farm_takes(farm, start_agent, limit_bytes):
    async with start_agent():
        error = await failure(farm, await joined(farm), limit_bytes=limit_bytes)
    assert error.failed_step is None
    assert digest_bytes(KEPT.encode()) not in farm.blobs


async def test_a_farm_that_refuses_it_still_hears_of_the_failure(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        farm.pretend += [403] * 20
        error = await failure(farm, peer)
    assert (error.message, error.failed_step) == ("boom", None)
    assert any("could not be stored at the farm" in note for note in notes(peer))


async def test_a_farm_that_takes_for_ever_hears_of_the_failure_in_time(farm, start_agent, monkeypatch):
    monkeypatch.setattr(FailedSteps.__init__, "__defaults__", (0.05,))
    farm.waits += ["others come first"] * 1000
    async with start_agent():
        peer = await joined(farm)
        error = await failure(farm, peer, times=200_000, limit_bytes=1 << 30)
    assert (error.message, error.failed_step) == ("boom", None)
    assert any("it took too long" in note for note in notes(peer))


async def test_no_file_outside_of_the_scratch_folder_is_sent_or_removed(farm, start_agent, tmp_path):
    secret = tmp_path / "secret"
    async with start_agent():
        error = await failure(farm, await joined(farm), elsewhere=str(secret))
    assert error.failed_step is None
    assert secret.read_text() == KEPT


async def test_what_has_no_file_is_told_as_ever(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="fail")))
        assert (await peer.expect(Error)).failed_step is None
    assert not any(isinstance(message, Reject) for message in peer.log)
