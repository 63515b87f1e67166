"""Takes a submission in: checks that it can run at all, and makes a repeat harmless."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from coordinator.continuing import at_start, check_goes_on, start_from
from coordinator.events import Event, TaskSubmitted
from coordinator.lifecycle import TaskState
from coordinator.offers import brief
from coordinator.privacy import check_budget
from coordinator.records import CheckpointRecord, TaskRecord
from farm_server.tasks.bundle_check import check_bundle
from farm_server.tasks.lock_check import check_lock
from farm_server.tensors.layouts import layout_of_file
from farm_server.tensors.torch_side import TorchSide
from farm_server.transfers.memory_blobs import MemoryBlobs
from protocol.contradictions import contradiction
from protocol.encoded import stored_tensors
from protocol.errors import Conflict, FarmError, InvalidTask, NotFound, TensorError, Unavailable
from protocol.features import FEATURES, unknown_to
from protocol.limits import MAX_CONFIG_BYTES
from protocol.packing import pack_map
from protocol.privacy import is_private
from protocol.secure_aggregation import is_secure
from protocol.tasks import BlobRef, TaskSpec
from protocol.tensors import Layout, Role, joined_layout
from protocol.wording import sized
from storage.ports.blob_store import BlobStore
from storage.ports.ledger import Ledger

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 8
_NAMED_AT_MOST = 5
_ANY_ID: Final = "a" * _ID_LENGTH
_GONE: Final = (
    "the farm has code and data of an ended task for a while only: submit them again, with --from for the weights"
)
_SAME: Final = frozenset(TaskSpec.model_fields) - {
    "initial_weights",
    "frozen",
    "footprint",
    "notes",
    "needs",
    "model_files",
}


def new_task_id() -> str:
    """Return 8 random lowercase base32 characters."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


class Submissions:
    """The way in for tasks. One submission with a token at a time, so that two cannot both be the first."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        blobs: BlobStore,
        memory: MemoryBlobs,
        torch_side: TorchSide,
        ask: Callable[[Event], Awaitable[None]],
        refuses: Callable[[], str | None],
        used: Callable[[Iterable[str]], None],
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._memory = memory
        self._torch_side = torch_side
        self._ask = ask
        self._refuses = refuses
        self._used = used
        self._turn = asyncio.Lock()

    async def submit(self, spec: TaskSpec) -> tuple[str, bool]:
        """Return the task's id, and whether it is new: a known submit token gives the first one's.

        Raises: InvalidTask naming what is wrong. Unavailable if it can't be made durable.
        """
        async with self._turn:
            if (known := await self._known(spec)) is not None:
                _check_same(known, spec)
                return known.task_id, False
            if (reason := self._refuses()) is not None:
                raise Unavailable(f"no task is taken in: {reason}")
            task_id = await self._new_id()
            start = await self._start(task_id, spec)
            self._used(_digests(spec, start))
            await asyncio.to_thread(self._check, spec, start)
            if spec.initial_weights.is_small:
                self._memory.keep(await self._blobs.read_async(spec.initial_weights.digest))
            await self._ask(TaskSubmitted(task_id, spec, start))
            return task_id, True

    async def _new_id(self) -> str:
        """Return an id that no task has, in memory or in the ledger."""
        while await self._ledger.task_end(task_id := new_task_id()) is not None:
            pass
        return task_id

    async def _start(self, task_id: str, spec: TaskSpec) -> CheckpointRecord | None:
        """Return what a task begins with that goes on from another's checkpoint. Raises: NotFound, InvalidTask."""
        origin = spec.continues
        if origin is None:
            return None
        before = await self._ledger.task(origin.task_id)
        checkpoint = None if before is None else await self._ledger.checkpoint(origin.task_id, origin.round)
        if before is None or checkpoint is None:
            raise NotFound(f"there is no checkpoint {origin.task_id}@{origin.round} any more to continue from")
        start = start_from(task_id, spec, before.spec, checkpoint)
        check_goes_on(at_start(TaskRecord(task_id, spec, TaskState.PENDING, created_at=0.0), start))
        return start

    async def _known(self, spec: TaskSpec) -> TaskRecord | None:
        return None if spec.submit_token is None else await self._ledger.task_by_token(spec.submit_token)

    def _check(self, spec: TaskSpec, start: CheckpointRecord | None) -> None:
        """Look for what no client could make up for. Runs in a thread: it reads headers and may wait for torch."""
        if why := unknown_to(FEATURES, spec.needs):
            raise InvalidTask(why)
        if (size := len(pack_map(spec.config))) > MAX_CONFIG_BYTES:
            raise InvalidTask(
                f"the config has {sized(size)}, at most {sized(MAX_CONFIG_BYTES)} are allowed; move data to files"
            )
        if len(pack_map(spec.model_files)) > MAX_CONFIG_BYTES:
            raise InvalidTask(f"the model's files have more than {sized(MAX_CONFIG_BYTES)}")
        check_sendable(spec)
        if why := contradiction(spec.recipe, spec.dataset):
            raise InvalidTask(f"the recipe contradicts itself: {why}")
        self._check_blobs(spec, start)
        check_bundle(self._blobs.path(spec.code.digest), spec.entry)
        if spec.environment is not None:
            check_lock(self._blobs.path(spec.environment.digest))
        if spec.map is not None:
            return  # there are no weights to look at
        try:
            layout = layout_of_file(self._blobs.path(spec.initial_weights.digest))
            for codec in (spec.recipe.update_codec, spec.recipe.weights_codec):
                stored_tensors(layout, codec)
        except TensorError as error:
            raise InvalidTask(f"the initial weights can't be used: {error.message}") from error
        if spec.frozen is not None:
            self._check_frozen(spec.frozen, layout)
        _check_privacy(spec, layout, start)
        self._torch_side.check_outer_optimizer(spec.recipe.outer, layout)

    def _check_frozen(self, frozen: BlobRef, layout: Layout) -> None:
        """Look whether the two files are parts of one model. Raises: InvalidTask."""
        try:
            joined_layout(layout, layout_of_file(self._blobs.path(frozen.digest)))
        except TensorError as error:
            raise InvalidTask(f"the frozen weights can't be used: {error.message}") from error

    def _check_blobs(self, spec: TaskSpec, start: CheckpointRecord | None) -> None:
        if any(ref.carried is not None for ref in _references(spec)):
            raise InvalidTask("a submission carries no blob's bytes; upload its blobs first (PUT /v1/blobs/DIGEST)")
        # many shards may be one blob: each is made young, which syncs, only once
        missing = [digest for digest in sorted(_digests(spec, start)) if not self._blobs.renew(digest)]
        if missing:
            shown = ", ".join(missing[:_NAMED_AT_MOST])
            more = f" and {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
            why = f"upload these blobs first (PUT /v1/blobs/DIGEST): {shown}{more}"
            raise InvalidTask(f"{_GONE}; {why}" if start is not None else why)
        sizes = {digest: self._blobs.size(digest) for digest in _digests(spec)}
        for ref in _references(spec):
            if (size := sizes[ref.digest]) != ref.size_bytes:
                raise InvalidTask(f"blob {ref.digest} has {size} bytes and the submission says {ref.size_bytes}")


def _check_privacy(spec: TaskSpec, layout: Layout, start: CheckpointRecord | None) -> None:
    """See that what a private task spends can be counted, and that nothing goes without noise. Raises: InvalidTask."""
    check_budget(spec.recipe, 0 if start is None else start.round)
    if is_secure(spec.recipe) and any(tensor.role is Role.BUFFER for tensor in layout.tensors):
        raise InvalidTask(
            "with secure_aggregation a model has no buffers: they are no differences, and some are not averaged; use "
            "GroupNorm or LayerNorm instead of BatchNorm, or persistent=False"
        )
    if is_secure(spec.recipe) and spec.epoch_end:
        raise InvalidTask("with secure_aggregation there is no on_epoch_end: its files may tell of one client's data")
    if is_private(spec.recipe) and any(tensor.role is Role.BUFFER for tensor in layout.tensors):
        raise InvalidTask(
            "with dp_clip a model has no buffers: clients would send theirs without noise; use GroupNorm or LayerNorm "
            "instead of BatchNorm, or persistent=False"
        )


def _check_same(known: TaskRecord, spec: TaskSpec) -> None:
    """See that a submit token comes with what it came with before. Raises: Conflict naming what differs.

    Weights that are drawn anew at each run, and what was measured or said of them, may differ in a repeat.
    """
    differ = [name for name in sorted(_SAME) if getattr(known.spec, name) != getattr(spec, name)]
    if differ:
        raise Conflict(
            f"the submit token {spec.submit_token!r} was used for task {known.task_id} with another "
            f"{', '.join(differ)}; take another token for another task"
        )


def _digests(spec: TaskSpec, start: CheckpointRecord | None = None) -> set[str]:
    return {ref.digest for ref in (*_references(spec), *(start.blobs if start is not None else ()))}


def _references(spec: TaskSpec) -> Iterator[BlobRef]:
    yield spec.code
    yield spec.initial_weights
    if spec.frozen is not None:
        yield spec.frozen
    for file in spec.base:
        yield file.blob
    if spec.environment is not None:
        yield spec.environment
    for shard in spec.dataset.shards:
        if shard.blob is not None:
            yield shard.blob


def check_sendable(spec: TaskSpec) -> None:
    """Write the specification as clients, the ledger and researchers will get it. Raises: InvalidTask if that fails.

    What can't be packed would throw out each client that is offered it.

    The shards are left out: there may be very many of them, and they hold nothing but bounded numbers and digests.
    """
    try:
        pack_map(brief(_ANY_ID, spec).model_dump())
        spec.model_dump_json(exclude={"dataset"})
    except FarmError as error:
        raise InvalidTask(f"no client could be told of this task: {error.message}") from error
    except ValueError as error:  # pydantic's error for what can't be written is one
        raise InvalidTask(f"this task can't be written as JSON: {error}") from error
