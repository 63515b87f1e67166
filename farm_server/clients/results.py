"""How assignments end: the results and failures that clients report. A result is checked before it counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from coordinator.events import Event, ResultArrived
from coordinator.records import AssignmentRecord
from farm_server.clients.registry import Peer
from farm_server.clients.translate import failure_of, unusable
from farm_server.observability.telemetry import Telemetry
from farm_server.tensors.intake import Intake
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.transfers.map_outputs import MapOutputs
from protocol.artefacts import Artefact
from protocol.assignments import Kind, Result, WorkStage
from protocol.errors import FarmError, NotFound
from protocol.maps import FAILED_ITEMS
from protocol.messages import Error
from protocol.tasks import BlobRef

_CHECKS_AT_ONCE = 16
_STAGES = frozenset(map(str, WorkStage))
_log = structlog.get_logger(__name__)


class IncomingResults:
    """Checks results where that is quick, else in a thread; ``used`` is called with the blobs that they refer to."""

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        intake: Intake,
        outputs: MapOutputs,
        spooled: SpooledUpdates,
        telemetry: Telemetry,
        used: Callable[[Iterable[str]], None],
    ) -> None:
        self._post = post
        self._intake = intake
        self._outputs = outputs
        self._spooled = spooled
        self._telemetry = telemetry
        self._used = used
        self._checks: set[asyncio.Task[None]] = set()
        self._free_checks = asyncio.Semaphore(_CHECKS_AT_ONCE)

    async def take(self, peer: Peer, assignment: AssignmentRecord | None, result: Result) -> None:
        """Take the result of an assignment of the peer's; None: it is not in flight (any more), or another client's.

        Waits only where too many large results are being checked already.
        """
        if assignment is None:
            # the coordinator will say that it came late
            self._arrived(peer, result.model_copy(update={"update": None}))
        elif assignment.kind is Kind.EPOCH_END:
            self._epoch_end(peer, assignment, result)
        elif assignment.kind is Kind.MAP:
            await self._begin(self._keep_outputs(peer, assignment, result))
        elif self._intake.is_quick(result):
            self._check_now(peer, assignment, result)
        else:
            await self._begin(self._check_apart(peer, assignment, result))

    async def _begin(self, check: Coroutine[Any, Any, None]) -> None:
        """Let a check run apart, once fewer than the most do."""
        await self._free_checks.acquire()
        task = asyncio.create_task(check)
        self._checks.add(task)
        task.add_done_callback(self._checked)

    async def _keep_outputs(self, peer: Peer, assignment: AssignmentRecord, result: Result) -> None:
        """Take the outputs of a part of a map, once they are stored."""
        try:
            output = await asyncio.to_thread(self._outputs.keep, result, assignment.samples)
        except FarmError as error:
            self._refuse(peer, assignment, result, error)
            return
        self._used([output.digest])
        told = {name: value for name, value in result.metrics.items() if name == FAILED_ITEMS}
        self._arrived(peer, result.model_copy(update={"update": None, "metrics": told}), output=output)

    def fail(self, peer: Peer, message: Error) -> None:
        """Take an error: an assignment's failure, with what the client stored of the step, or for the log alone."""
        failure = failure_of(peer, message)
        if failure is None:
            _log.warning("a client reports an error", client=peer.name, code=message.code, error=message.message)
        else:
            self._post(replace(failure, failed_step=self._stored(failure.failed_step)))

    def _stored(self, step: BlobRef | None) -> BlobRef | None:
        """Return what a client stored with the size that it has here; None if it is not here."""
        if step is None or step.carried is not None:
            return None
        try:
            source = self._spooled.source(step)
            return BlobRef(digest=step.digest, size_bytes=source.stat().st_size) if isinstance(source, Path) else None
        except (NotFound, OSError):
            return None

    def _epoch_end(self, peer: Peer, assignment: AssignmentRecord, result: Result) -> None:
        """Take the end of an epoch, if all files that it left are here, with the sizes that they have here."""
        here = [self._stored(BlobRef(digest=file.digest, size_bytes=file.size_bytes)) for file in result.artefacts]
        sized = [
            file.model_copy(update={"size_bytes": ref.size_bytes})
            for file, ref in zip(result.artefacts, here, strict=True)
            if ref is not None
        ]
        if len(sized) < len(here):
            lacking = NotFound("a file that on_epoch_end left was never uploaded")
            self._refuse(peer, assignment, result, lacking)
            return
        self._used(file.digest for file in sized)
        self._arrived(peer, result.model_copy(update={"update": None}), tuple(sized))

    def _check_now(self, peer: Peer, assignment: AssignmentRecord, result: Result) -> None:
        try:
            usable = self._intake.check(assignment.task_id, assignment.kind, result)
        except FarmError as error:
            self._refuse(peer, assignment, result, error)
        else:
            self._usable(peer, result, usable)

    async def _check_apart(self, peer: Peer, assignment: AssignmentRecord, result: Result) -> None:
        began = time.perf_counter()
        try:
            usable = await asyncio.to_thread(self._intake.check, assignment.task_id, assignment.kind, result)
        except FarmError as error:
            self._refuse(peer, assignment, result, error)
        else:
            self._telemetry.stage_seconds.labels("check").inc(time.perf_counter() - began)
            self._usable(peer, result, usable)

    def _usable(self, peer: Peer, told: Result, usable: Result) -> None:
        """Take a result that was checked; ``told`` names the update as it came, wrapped perhaps."""
        self._used(r.update.digest for r in (told, usable) if r.update is not None)
        self._arrived(peer, usable)

    def _checked(self, check: asyncio.Task[None]) -> None:
        self._checks.discard(check)
        self._free_checks.release()
        if not check.cancelled() and (error := check.exception()) is not None:
            _log.error("a result could not be checked", exc_info=error)

    def _refuse(self, peer: Peer, assignment: AssignmentRecord, result: Result, error: FarmError) -> None:
        self._telemetry.updates.labels("refused").inc()
        _log.warning(
            "a result is refused",
            client=peer.name,
            task=assignment.task_id,
            round=assignment.round,
            assignment=result.assignment_id,
            code=error.code,
            error=error.message,
        )
        self._post(unusable(peer, result, error))

    def _arrived(
        self, peer: Peer, result: Result, artefacts: tuple[Artefact, ...] = (), output: BlobRef | None = None
    ) -> None:
        self._spooled.hold(result.update)
        self._telemetry.updates.labels("usable").inc()
        self._telemetry.compute_seconds.inc(result.compute_seconds)
        for stage in result.stage_seconds.keys() & _STAGES:  # a client may name others, without end
            self._telemetry.stage_seconds.labels(stage).inc(result.stage_seconds[stage])
        self._post(
            ResultArrived(
                peer.client_id,
                peer.incarnation,
                result.assignment_id,
                result.fence,
                result.samples,
                result.metrics,
                result.update,
                result.compute_seconds,
                result.flops_per_sample,
                artefacts,
                output,
            )
        )
