"""A failed step that a client stored: shown with its task, kept while that is, and gone with it."""

from __future__ import annotations

from typing import Any

from protocol.messages import Error, Scope
from tests.farm_server import model
from tests.farm_server.tasks.test_removal import aged
from tests.farm_server.test_training import ended

LINE = "train.py:3, in loss"


async def test_it_is_shown_with_the_task_and_removed_with_it(start: Any) -> None:
    kept = b"state and batch"
    async with start(retention_seconds=3600, superseded_grace_seconds=10) as server:
        async with server.volunteer() as volunteer:
            await volunteer.ready()
            task_id = await model.submit(server.http)
            assign = await volunteer.accept()
            assert assign.failed_step_bytes == 256 * 1024**2
            ref = model.ref(kept)
            assert (await server.http.put(f"/v1/blobs/{ref.digest}", content=kept)).status_code == 201
            failed = {"assignment_id": assign.assignment_id, "fence": assign.fence, "scope": Scope.NOBODY}
            await volunteer.send(Error(code="task_code", message=f"{LINE}: ValueError", failed_step=ref, **failed))
            assert (await ended(server.http, task_id))["state"] == "failed"
        detail = (await server.http.get(f"/v1/tasks/{task_id}")).json()
        assert detail["failed_steps"] == [{"line": LINE, "digest": ref.digest, "size_bytes": len(kept)}]
        aged(server, ref.digest)
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert (await server.http.get(f"/v1/blobs/{ref.digest}")).content == kept
        assert (await server.http.delete(f"/v1/tasks/{task_id}", params={"force": True})).status_code == 200
        aged(server, ref.digest)
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert not server.farm.blobs.has(ref.digest)
