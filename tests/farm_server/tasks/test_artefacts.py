"""Artefacts that a client stored: listed with their task, kept while that is, and gone with it."""

from __future__ import annotations

from typing import Any

from protocol.artefacts import Artefact
from protocol.assignments import Assign, Kind
from protocol.recipe import OuterOptimizer, Recipe
from tests.farm_server import model
from tests.farm_server.tasks.test_removal import aged
from tests.farm_server.test_training import ended

PICTURE = b"picture"


def ending() -> Any:
    recipe = Recipe(rounds=1, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0}))
    return model.spec(epoch_end=True, recipe=recipe, needs=("epoch_end",))


async def at_its_end(server: Any, volunteer: Any) -> tuple[str, Assign]:
    await volunteer.ready()
    task_id = await model.submit(server.http, ending())
    await volunteer.deliver(await volunteer.accept(), model.update())
    await volunteer.ready()
    assign = await volunteer.accept()
    assert (assign.kind, assign.slices, assign.epoch) == (Kind.EPOCH_END, (), 0)
    return task_id, assign


async def test_they_are_listed_and_kept_and_removed_with_their_task(start: Any) -> None:
    ref = model.ref(PICTURE)
    async with start(retention_seconds=3600, superseded_grace_seconds=10) as server:
        async with server.volunteer(features=("epoch_end",)) as volunteer:
            task_id, assign = await at_its_end(server, volunteer)
            assert (await server.http.put(f"/v1/blobs/{ref.digest}", content=PICTURE)).status_code == 201
            said = Artefact(name="in/a.png", digest=ref.digest, size_bytes=99)
            await volunteer.deliver(assign, b"", samples=1, artefacts=(said,))
            assert (await ended(server.http, task_id))["state"] == "completed"
        listed = (await server.http.get(f"/v1/tasks/{task_id}/artefacts")).json()
        kept = {"epoch": 0, "name": "in/a.png", "digest": ref.digest, "size_bytes": len(PICTURE)}
        assert listed == {"task_id": task_id, "artefacts": [kept], "error": None}
        aged(server, ref.digest)
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert (await server.http.get(f"/v1/blobs/{ref.digest}")).content == PICTURE
        assert (await server.http.delete(f"/v1/tasks/{task_id}", params={"force": True})).status_code == 200
        aged(server, ref.digest)
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert not server.farm.blobs.has(ref.digest)
        assert (await server.http.get(f"/v1/tasks/{task_id}/artefacts")).status_code == 404
