"""What came of an assignment's steps, before it is written and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from farm_client.executor.layout import TensorMap, apart
from farm_client.executor.messages import LeftFile
from farm_client.executor.training import Trained
from farm_client.stage_clock import StageClock
from protocol.assignments import WorkStage


@dataclass(frozen=True)
class StepsOutcome:
    """What came of an assignment's steps, or an epoch's end ``left``; ``started`` on the clock of ``perf_counter``."""

    assignment_id: str
    samples: int
    metrics: dict[str, float]
    started: float
    clock: StageClock
    trained: Trained | None = None
    ended: float | None = None
    left: tuple[LeftFile, ...] = ()

    def apart(self, into: TensorMap | None = None) -> StepsOutcome:
        """Return it with an update that no later step changes; the executor has worked on it until now."""
        trained = self.trained and replace(self.trained, update=apart(self.trained.update, into))
        self.clock.ended(WorkStage.COPY)
        return replace(self, trained=trained, ended=time.perf_counter())

    def adopted(self, assignment_id: str, waited_seconds: float) -> StepsOutcome:
        """Return it as that of an order which came so long after its steps."""
        self.clock.skip()
        return replace(self, assignment_id=assignment_id, started=self.started + waited_seconds)

    def compute_seconds(self) -> float:
        """Return how long the executor has been at it, so far or until it was ready for the next order."""
        return (self.ended or time.perf_counter()) - self.started
