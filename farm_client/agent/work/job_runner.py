"""Does a job to the end of its delivery, and returns what went wrong where it has no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from farm_client.agent.home.outbox import Parcel
from farm_client.agent.reporting.display import Display
from farm_client.agent.work.deliveries import Deliveries, UploadPlaces, WayOut
from farm_client.agent.work.held_assignment import Held
from farm_client.agent.work.job import Job
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Kind, Phase, Reject
from protocol.errors import FarmError
from protocol.messages import Error

_PIPELINED: Final = frozenset({Kind.TRAIN, Kind.MAP})
"""What is computed before it is written and sent."""


@dataclass(frozen=True, slots=True)
class JobRunner:
    """``free_slot`` is called when a pipelined job needs its slot no more, ``report_output`` before a result goes."""

    places: UploadPlaces
    deliveries: Deliveries
    display: Display
    report_output: Callable[[Held], None]
    free_slot: Callable[[Job], None]

    async def run(self, job: Job) -> Error | Reject | None:
        """Do it; the farm has its result when this returns None."""
        assign = job.held.assign
        if not assign.task.pipeline or assign.kind not in _PIPELINED:
            return await self._deliver(job, await job.do())
        async with WayOut(self.places, job.held, lambda: self.free_slot(job)) as way_out:
            outcome = await job.do(way_out.begin)
            if isinstance(outcome, Parcel):
                self.report_output(job.held)
                await way_out.gone()
            return await self._deliver(job, outcome)

    async def _deliver(self, job: Job, outcome: Parcel | Error | Reject) -> Error | Reject | None:
        self.report_output(job.held)
        if not isinstance(outcome, Parcel):
            return outcome
        job.held.phase = Phase.UPLOADING
        self.display.computed(job.held.view())
        try:
            await self.deliveries.deliver(outcome, UploadListener(meter=job.held.sent, waits=job.held.waited))
        except (FarmError, OSError) as error:
            return job.held.failure(error)
        return None
