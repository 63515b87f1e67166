"""A task's base on its way to an executor, and the frozen tensors that need no way."""

import pytest

from protocol.assignments import Accept, Progress, Reject, Result
from protocol.tasks import BaseFile
from tests.farm_client.agent.scripted_farm import joined


def based(farm, **config):
    """Return a task with a base of two files, whose frozen tensors the farm holds."""
    files = {"config.json": b"config", "tokens/vocab.json": b"vocab"}
    base = tuple(BaseFile(path=path, blob=farm.store(data)) for path, data in files.items())
    return farm.task(**config).model_copy(update={"base": base, "frozen": farm.store(b"frozen")})


def printed(peer):
    return [line.text for message in peer.log if isinstance(message, Progress) for line in message.logs]


@pytest.mark.parametrize("builds_others", [False, True])
async def test_the_executor_gets_a_folder_and_the_frozen_tensors_only_if_it_builds_others(
    farm, start_agent, builds_others
):
    async with start_agent():
        peer = await joined(farm)
        task = based(farm, builds_others=builds_others)
        await peer.send(farm.assign(task))
        await peer.expect(Accept)
        result = await peer.expect(Result)
    assert result.update.inline == b"weights-shard"
    assert "base {'config.json': 'config', 'tokens/vocab.json': 'vocab'}" in printed(peer)
    assert len(farm.requests) == 4 + builds_others  # code, shard, two files; and the frozen tensors
    assert any("builds other frozen tensors" in line for line in printed(peer)) is builds_others


async def test_a_base_that_the_cache_cannot_hold_is_said(farm, start_agent):
    async with start_agent(cache_bytes=1000):
        peer = await joined(farm)
        large = BaseFile(path="model.safetensors", blob=farm.store(b"x" * 5000))
        await peer.send(farm.assign(farm.task().model_copy(update={"base": (large,)})))
        refusal = await peer.expect(Reject)
    assert "does not fit into the cache of 1000 B" in refusal.message
