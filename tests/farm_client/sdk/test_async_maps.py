"""Maps and sweeps of an event loop: the same calls as of `Farm`, awaited, and outputs as an asynchronous iterator."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from farm_client import AsyncFarm, Farm
from farm_client.outputs import ItemError, pack_output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.outcome import TaskEnded
from farm_client.sdk.sweeping.sweep import SweepView
from protocol.digests import digest_bytes
from protocol.maps import FailedItemView, OutputList, OutputView
from protocol.outputs import join_outputs
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, make_task


@pytest.fixture
def fake() -> FakeFarm:
    return FakeFarm()


@pytest.fixture
def farm(fake: FakeFarm) -> AsyncFarm:
    program = AsyncFarm(ADDRESS)
    program.sync.close()
    program.sync = Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport()))
    return program


def has_outputs(fake: FakeFarm, task_id: str, state: str = "completed") -> None:
    data = join_outputs([pack_output(value) for value in (10, 11)])
    fake.blobs[digest_bytes(data)] = data
    view = OutputView(position=0, items=2, digest=digest_bytes(data), size_bytes=len(data))
    killed = FailedItemView(position=2, error="killed", clients=("ada",))
    fake.outputs = OutputList(task_id=task_id, outputs=(view,), failed=(killed,), items=3, is_over=True)
    fake.tasks = [make_task(task_id, state=state, mode="map", items_total=3, samples_done=3)]


@pytest.mark.parametrize("name", ["map", "outputs", "sweep"])
def test_each_call_takes_what_the_blocking_one_takes(name: str) -> None:
    own, other = (inspect.signature(getattr(kind, name)).parameters for kind in (AsyncFarm, Farm))
    assert [(one.name, one.kind, one.default) for one in own.values() if one.name != "on_change"] == [
        (one.name, one.kind, one.default) for one in other.values() if one.name != "on_change"
    ]
    assert ("on_change" in own) == ("on_change" in other)


async def test_a_map_is_submitted_and_gives_outputs_in_order(farm: AsyncFarm, fake: FakeFarm, tmp_path: Path) -> None:
    code = tmp_path / "fn.py"
    code.write_text("def map_item(item, config):\n    return item + 10\n")
    async with farm:
        results = await farm.map(code, items=3, seed=7, check=False)
        (spec,) = fake.submitted
        assert (spec.map is not None, spec.recipe.seed, spec.dataset.shards[0].samples) == (True, 7, 3)
        has_outputs(fake, results.task.id)
        found = [output async for output in results]
        assert found == [10, 11, ItemError(2, "killed (on ada)")]
        assert [output async for output in results.from_item(1, follow_on=False)] == found[1:]
        assert (await results.save(tmp_path / "r.jsonl")).read_text().splitlines()[:2] == ["10", "11"]
        assert results.task.id in repr(results)


async def test_a_map_that_failed_says_so_behind_its_last_output(farm: AsyncFarm, fake: FakeFarm) -> None:
    has_outputs(fake, "abcd2345", "failed")
    async with farm:
        outputs = aiter(await farm.outputs("abcd"))
        assert [await anext(outputs) for _ in range(3)][:2] == [10, 11]
        with pytest.raises(TaskEnded):
            await anext(outputs)


async def test_a_sweep_is_waited_for(farm: AsyncFarm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def sweep(_farm: Farm, *arguments: object, **named: object) -> str:
        asked.update(named, arguments=arguments)
        return "the best"

    monkeypatch.setattr(Farm, "sweep", sweep)
    named = {
        "study": tmp_path,
        "data": "rows.npz",
        "settings": "task.toml",
        "recipe": {"rounds": 2},
        "config": {"a": 1},
    }

    def on_change(_view: SweepView) -> None: ...

    async with farm:
        assert await farm.sweep("sweep.toml", "train.py", **named, on_change=on_change, name="mine") == "the best"
    assert asked == {"arguments": ("sweep.toml", "train.py"), **named, "on_change": on_change, "name": "mine"}
