"""Tasks: submit, list, look into, act on."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from coordinator.events import Action
from farm_server.http.access import FARM_TOKEN, CommandsDep, TasksDep
from farm_server.http.listing import listing, written
from farm_server.http.spec_json import parse_spec
from protocol.artefacts import ArtefactList
from protocol.bounds import Count, Natural
from protocol.errors import Unavailable
from protocol.maps import OutputList
from protocol.rest import (
    CheckpointView,
    Explanation,
    ModelView,
    PriorityRequest,
    RemovedView,
    ShardBook,
    SubmitReply,
    TaskDetail,
    TaskView,
    WhyView,
)
from protocol.tasks import TaskSpec
from storage.ports.ledger import TaskKey

router = APIRouter(prefix="/v1/tasks", tags=["tasks"], dependencies=FARM_TOKEN)

_ROUNDS_SHOWN = 50
_LARGEST_PAGE: Final = 1000
_CURSOR: Final = r"^\d{1,15}(\.\d{1,20})?_.{1,64}$"
"""When the last task of a part was submitted, and its id."""
_SHORT_BYTES: Final = 64 * 1024
_long_ones: Final = asyncio.Semaphore(1)
"""To read one takes some hundred megabytes for a moment."""
_SPEC: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TaskSpec"}}},
    }
}


async def read_spec(request: Request) -> TaskSpec:
    """Read the body, a long one in a thread. Raises: InvalidTask; Unavailable where the connection was cut."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Unavailable("the connection was cut; submit again") from None
    if len(body) <= _SHORT_BYTES:
        return parse_spec(body)
    async with _long_ones:
        return await asyncio.to_thread(parse_spec, body)


@router.post("", status_code=HTTPStatus.CREATED, summary="Submit a task", openapi_extra=_SPEC)
async def submit(
    spec: Annotated[TaskSpec, Depends(read_spec)], commands: CommandsDep, tasks: TasksDep, response: Response
) -> SubmitReply:
    """Take a task in; its blobs were uploaded before. A repeat with its submit token gives 200 and the first one."""
    task_id, created = await commands.submit(spec)
    if not created:
        response.status_code = HTTPStatus.OK
    return SubmitReply(task=await tasks.view(task_id), created=created)


class TaskListPart(BaseModel):
    """Which part of the list: at most ``limit`` tasks, from where ``cursor`` says that the part before it ended."""

    limit: int = Field(default=_LARGEST_PAGE, ge=1, le=_LARGEST_PAGE)
    cursor: str | None = Field(
        default=None, pattern=_CURSOR, description="As the answer's `Link` to the next part has it."
    )
    active: bool = Field(default=False, description="All tasks that may still train, and no others, in one part.")

    @property
    def before(self) -> TaskKey | None:
        """Return the last task of the part before."""
        at, _, task_id = (self.cursor or "").partition("_")
        return TaskKey(float(at), task_id) if task_id else None


@router.get("", summary="List tasks, newest first", response_model=list[TaskView])
async def list_tasks(request: Request, tasks: TasksDep, part: Annotated[TaskListPart, Query()]) -> Response:
    """Return a part of the list. If there is more, the `Link` header (`rel="next"`) has the address of what follows.

    Tasks that are submitted meanwhile move nothing: a walk meets each task once that was there when it began.
    """
    if part.active:
        return listing(tasks.active())
    page = await tasks.page(part.limit, part.before)
    answer = listing(page.tasks)
    if page.after is not None:
        query = urlencode({"limit": part.limit, "cursor": f"{page.after.created_at!r}_{page.after.task_id}"})
        answer.headers["link"] = f'<{request.url.path}?{query}>; rel="next"'
    return answer


@router.get("/{task_id}", summary="One task with its specification and newest rounds", response_model=TaskDetail)
async def show(task_id: str, tasks: TasksDep) -> Response:
    """Return the task; its open round, if any, comes first."""
    detail = await tasks.detail(task_id, _ROUNDS_SHOWN)
    return await asyncio.to_thread(written, detail)  # it names every shard


@router.post("/{task_id}/{action}", summary="Pause, resume, cancel or retry a task")
async def act(task_id: str, action: Action, commands: CommandsDep, tasks: TasksDep) -> TaskView:
    """Do it; 409 where the task's state forbids it. Durable on return."""
    await commands.act(task_id, action)
    return await tasks.view(task_id)


@router.put("/{task_id}/priority", summary="Give a task another priority")
async def prioritize(task_id: str, request: PriorityRequest, commands: CommandsDep, tasks: TasksDep) -> TaskView:
    """Do it; 409 where the task is completed or cancelled. Durable on return."""
    await commands.prioritize(task_id, request.priority)
    return await tasks.view(task_id)


@router.delete("/{task_id}", summary="Remove a task that is over, and all that is recorded of it")
async def remove(
    task_id: str,
    commands: CommandsDep,
    force: Annotated[bool, Query(description="Cancel it first, if it is not over.")] = False,
) -> RemovedView:
    """Do it; 409 where the task is not over. Blobs that only it needed follow within a minute."""
    await commands.remove(task_id, force=force)
    return RemovedView(task_id=task_id)


@router.get("/{task_id}/why", summary="What the task waits for, in one line")
async def why(task_id: str, tasks: TasksDep) -> WhyView:
    """Return the line."""
    return WhyView(why=await tasks.why(task_id))


@router.get("/{task_id}/explain", summary="Every client's score for the task")
async def explain(task_id: str, tasks: TasksDep) -> Explanation:
    """Return the terms of each score, and why clients are left out."""
    return await tasks.explain(task_id)


@router.get("/{task_id}/shards", summary="The books: how often each sample was counted")
async def shards(task_id: str, tasks: TasksDep) -> list[ShardBook]:
    """Return one book for each training shard and epoch, worked out from the counted assignments."""
    return await tasks.shard_books(task_id)


@router.get("/{task_id}/checkpoints", summary="The checkpoints that are kept, oldest first")
async def checkpoints(task_id: str, tasks: TasksDep) -> list[CheckpointView]:
    """Return them; the last one is what `model` gives without a round. 404 for an unknown task."""
    return await tasks.checkpoints(task_id)


@router.get("/{task_id}/artefacts", summary="The files that the ends of its epochs left")
async def artefacts(task_id: str, tasks: TasksDep) -> ArtefactList:
    """Return them by epoch and name; their bytes are at `/v1/blobs/{digest}`. 404 for an unknown task."""
    return await tasks.artefacts(task_id)


@router.get("/{task_id}/outputs", summary="Outputs of a map, in order")
async def outputs(
    task_id: str,
    tasks: TasksDep,
    start: Annotated[Count, Query(description="The first item to have the output of.")] = 0,
) -> OutputList:
    """Return those that follow it without a gap; ask again from the item after them. 404 where there is no such map."""
    return await tasks.outputs(task_id, start)


@router.get("/{task_id}/model", summary="The checkpoint to pull")
async def model(
    task_id: str,
    tasks: TasksDep,
    number: Annotated[Natural | None, Query(alias="round", description="The newest when absent.")] = None,
) -> ModelView:
    """Return the checkpoint's digest; fetch it from /v1/blobs."""
    return await tasks.model(task_id, number)
