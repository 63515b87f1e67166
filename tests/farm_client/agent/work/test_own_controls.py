"""A client's own control variate comes back with each assignment of its task, through executors and agents."""

from protocol.assignments import Progress, Result
from tests.farm_client.agent.scripted_farm import joined


async def did(peer, farm, task, number):
    """Give the client a part of a round of the task; return what its control variate was."""
    assign = farm.assign(task, round_number=number)
    await peer.send(assign)
    while (await peer.expect(Result)).assignment_id != assign.assignment_id:
        pass  # what the farm has not acknowledged comes again after a welcome
    lines = [line.text for message in peer.log if isinstance(message, Progress) for line in message.logs]
    return [line.removeprefix("control was ") for line in lines if line.startswith("control was")][-1]


def scaffold(farm, name="scaffold", **config):
    return farm.task(name, doing="control", **config).model_copy(update={"scaffold_clients": 2})


async def test_it_outlives_executors_and_agents_and_belongs_to_one_task(farm, start_agent):
    task = scaffold(farm)
    async with start_agent():
        peer = await joined(farm)
        assert await did(peer, farm, task, 0) == "zero"
        assert await did(peer, farm, task, 1) == "+0"
    async with start_agent():
        peer = await farm.next_client()
        await peer.welcome()
        assert await did(peer, farm, task, 2) == "+0+1"
        other = task.model_copy(update={"task_id": "another"})
        assert await did(peer, farm, other, 0) == "zero"


async def test_nothing_but_a_file_of_the_scratch_folder_is_kept(farm, start_agent, home):
    task = scaffold(farm, leaves=False)
    async with start_agent():
        peer = await joined(farm)
        await did(peer, farm, task, 0)
        assert await did(peer, farm, task, 1) == "zero"
    assert not list((home / "controls").rglob("*.control"))
