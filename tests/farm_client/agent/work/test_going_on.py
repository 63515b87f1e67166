"""An executor that goes on unasked: what the agent believes it to hold, and when it has it stop."""

from __future__ import annotations

from functools import partial

import pytest

from protocol.assignments import Cancel, Result
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until


@pytest.mark.parametrize("follows", ["its own next round", "a cancel", "another task"])
async def test_it_goes_on_until_the_machine_is_wanted_for_something_else(farm, start_agent, tmp_path, follows):
    abandoned = tmp_path / "abandoned"
    async with start_agent():
        peer = await joined(farm)
        task = farm.task(goes_on=True, abandoned=str(abandoned))
        first = farm.assign(task, weights=b"one")
        await peer.send(first)
        await peer.expect(Result)
        match follows:
            case "its own next round":
                await peer.send(farm.assign(task, weights=b"one+"))
                result = await peer.expect(Result)
                assert result.update.carried == b"one+-shard", "the weights that it said it holds"
                assert not abandoned.exists()
            case "a cancel":
                await peer.send(Cancel(assignment_id=first.assignment_id, fence=first.fence, reason="over"))
                await until(abandoned.exists)
            case "another task":
                other = farm.task(doing="train", other=True)
                await peer.send(farm.assign(other.model_copy(update={"task_id": "other"}), weights=b"two"))
                await until(partial(abandoned.exists))
                await peer.expect(Result)
