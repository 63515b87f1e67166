"""Tasks: submit, list, look into, act on."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from coordinator.books import shard_books
from coordinator.events import Action, TaskAction
from farm_server.farm import Farm
from farm_server.http.access import FARM_TOKEN, FarmDep
from farm_server.http.rounds import newest_rounds
from protocol.errors import NotFound
from protocol.rest import CheckpointView, Explanation, ModelView, ShardBook, SubmitReply, TaskDetail, TaskView, WhyView
from protocol.tasks import BlobRef, TaskSpec

router = APIRouter(prefix="/v1/tasks", tags=["tasks"], dependencies=FARM_TOKEN)

_ROUNDS_SHOWN = 50


@router.post("", status_code=HTTPStatus.CREATED, summary="Submit a task")
async def submit(spec: TaskSpec, farm: FarmDep, response: Response) -> SubmitReply:
    """Take a task in; its blobs were uploaded before. A repeat with its submit token gives 200 and the first one."""
    task_id, created = await farm.submissions.submit(spec)
    if not created:
        response.status_code = HTTPStatus.OK
    return SubmitReply(task=await _view(farm, task_id), created=created)


@router.get("", summary="List tasks, newest first")
async def list_tasks(farm: FarmDep) -> list[TaskView]:
    """Return all tasks."""
    return farm.coordinator.task_views(farm.clock.now())


@router.get("/{task_id}", summary="One task with its specification and newest rounds")
async def show(task_id: str, farm: FarmDep) -> TaskDetail:
    """Return the task; its open round, if any, comes first."""
    view = await _view(farm, task_id)
    record = await farm.ledger.task(task_id)
    if record is None:
        raise NotFound(f"task {task_id} is not in the ledger yet; try again in a moment")
    return TaskDetail(task=view, spec=record.spec, rounds=tuple(await newest_rounds(farm, task_id, _ROUNDS_SHOWN)))


@router.post("/{task_id}/{action}", summary="Pause, resume, cancel or retry a task")
async def act(task_id: str, action: Action, farm: FarmDep) -> TaskView:
    """Do it; 409 where the task's state forbids it. Durable on return."""
    await farm.runtime.ask(TaskAction(task_id, action))
    return await _view(farm, task_id)


@router.get("/{task_id}/why", summary="What the task waits for, in one line")
async def why(task_id: str, farm: FarmDep) -> WhyView:
    """Return the line."""
    return WhyView(why=farm.coordinator.why(task_id, farm.clock.now()))


@router.get("/{task_id}/explain", summary="Every client's score for the task")
async def explain(task_id: str, farm: FarmDep) -> Explanation:
    """Return the terms of each score, and why clients are left out."""
    return farm.coordinator.explain(task_id, farm.clock.now())


@router.get("/{task_id}/shards", summary="The books: how often each sample was counted")
async def shards(task_id: str, farm: FarmDep) -> list[ShardBook]:
    """Return one book for each training shard and epoch, worked out from the counted assignments."""
    record = await farm.ledger.task(task_id)
    if record is None:
        raise NotFound(f"there is no task {task_id}; `farm ls` lists the tasks")
    counted = await farm.ledger.assignments(task_id, counted_only=True)
    return shard_books(record.spec.dataset.shards, counted)


@router.get("/{task_id}/checkpoints", summary="The checkpoints that are kept, oldest first")
async def checkpoints(task_id: str, farm: FarmDep) -> list[CheckpointView]:
    """Return them; the last one is what `model` gives without a round. 404 for an unknown task."""
    await _view(farm, task_id)
    kept = await farm.ledger.checkpoints(task_id)
    frozen = await _frozen(farm, task_id)
    return [
        CheckpointView(
            task_id=task_id,
            round=c.round,
            epoch=c.epoch,
            digest=c.weights.digest,
            size_bytes=c.weights.size_bytes,
            frozen=frozen,
            created_at=c.created_at,
            metrics=dict(c.metrics),
            newest=c is kept[-1],
        )
        for c in kept
    ]


@router.get("/{task_id}/model", summary="The checkpoint to pull")
async def model(
    task_id: str,
    farm: FarmDep,
    number: Annotated[int | None, Query(alias="round", ge=0, description="The newest when absent.")] = None,
) -> ModelView:
    """Return the checkpoint's digest; fetch it from /v1/blobs."""
    view = await _view(farm, task_id)
    checkpoint = await farm.ledger.checkpoint(task_id, number)
    if checkpoint is None:
        kept = ", ".join(str(c.round) for c in await farm.ledger.checkpoints(task_id)) or "none yet"
        raise NotFound(f"task {task_id} has no checkpoint of round {number}; kept are: {kept}")
    return ModelView(
        task_id=task_id,
        round=checkpoint.round,
        digest=checkpoint.weights.digest,
        size_bytes=checkpoint.weights.size_bytes,
        frozen=await _frozen(farm, task_id),
        metrics=dict(checkpoint.metrics),
        state=view.state,
    )


async def _frozen(farm: Farm, task_id: str) -> BlobRef | None:
    record = await farm.ledger.task(task_id)
    return None if record is None else record.spec.frozen


async def _view(farm: Farm, task_id: str) -> TaskView:
    """Return the task as it is, once the ledger has that too: who sees a version can pull it. Raises: NotFound."""
    view = farm.coordinator.task_view(task_id, farm.clock.now())
    await farm.runtime.settle()
    return view
