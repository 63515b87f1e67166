"""An executor that breaks as ``AIFARM_FAULTS`` says; started in the place of ``farm_client.executor``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from farm_client.executor.__main__ import main
from farm_client.executor.messages import Done, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.runner import TaskRunner
from protocol.assignments import Kind
from tests.injection.places import Places
from tests.injection.plan import Fault
from tests.injection.standing import Standing

PLACES = Places.planned()
_T = TypeVar("_T")


class BreakableRunner(TaskRunner):
    """Comes to the executor's places around and inside of each training assignment."""

    def run(self, order: Run, progress: ProgressReporter) -> Done:
        """Carry out one assignment; evaluations pass all places."""
        return self._broken(super().run, order, progress)

    def run_on(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``; what is begun unasked passes all places."""
        return self._broken(super().run_on, order, progress)

    def run_ahead(self, order: Run, progress: ProgressReporter) -> Done | Callable[[], Done]:
        """Do as ``run``; the last place is after the steps."""
        return self._broken(super().run_ahead, order, progress)

    def _broken(self, run: Callable[[Run, Any], _T], order: Run, progress: ProgressReporter) -> _T:
        if order.kind is not Kind.TRAIN:
            return run(order, progress)
        PLACES.reach(Fault.EXECUTOR_BEFORE, order.round)
        outcome = run(order, _Progress(progress, order.round))
        PLACES.reach(Fault.EXECUTOR_AFTER, order.round)
        return outcome


class _Progress(Standing):
    def __init__(self, progress: Any, round_number: int) -> None:
        super().__init__(progress)
        self._round = round_number

    def advance(self, samples: int) -> None:
        self._part.advance(samples)
        PLACES.reach(Fault.EXECUTOR_DURING, self._round)
        PLACES.reach(Fault.EXECUTOR_SLOW, self._round)


if __name__ == "__main__":
    sys.exit(main(BreakableRunner))
