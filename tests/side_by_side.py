"""How files of tests are given to workers (xdist's ``loadfile``), with a mend: a crashed worker ends no suite.

A worker begins a test when it knows the next one, or that there is none. Of a crashed one xdist 3.8 takes back all
files, also those that are done, and gives out one for each test that ends: a worker that gets nothing to do by that
waits with its last test, no test ends, and the suite waits for ever.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class LoadFileToTheEnd(LoadFileScheduling):
    """Gives a worker more until it has two tests, or is told that there are no more."""

    def _reschedule(self, node: WorkerController) -> None:
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            if self.workqueue:
                self._assign_work_unit(node)
            else:
                node.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Take the place of ``loadfile``; any other way of xdist's is its own."""
    return LoadFileToTheEnd(config, log) if config.getoption("dist") == "loadfile" else None
