"""Whatever is saved, dropped or refused in whatever groups, the ledger ends as plain dictionaries would."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.records import CheckpointRecord, TaskRecord
from storage.errors import BadRecord
from storage.ports.ledger import Ledger
from tests.contract.test_ledger import OPENERS, Opener
from tests.storage import records as a

TOO_LARGE = 2**63
_names = st.sampled_from(["t1", "t2"])
_numbers = st.integers(0, 3)
_epochs = st.sampled_from([0, 1, 2, 3, 4, TOO_LARGE])
_records = st.builds(lambda name, epoch: a.task(name, epoch=epoch), _names, _epochs) | st.builds(
    lambda name, number, epoch: a.checkpoint(name, number, epoch=epoch), _names, _numbers, _epochs
)
_saves = st.lists(_records, min_size=1, max_size=4)
_drops = st.tuples(_names, st.frozensets(_numbers, max_size=2))
_steps = st.lists(st.tuples(_saves | _drops, st.booleans()), max_size=25)
"""What is done, and whether the caller waits for it before the next."""

Step = list[TaskRecord | CheckpointRecord] | tuple[str, frozenset[int]]


class Model:
    """The ledger's promises, on dictionaries."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskRecord] = {}
        self.checkpoints: dict[tuple[str, int], CheckpointRecord] = {}
        self.messages: list[str] = []

    def apply(self, step: Step, message: str) -> type[BadRecord] | None:
        """Do the step; return how the ledger must refuse it, if so."""
        if isinstance(step, tuple):
            for number in step[1]:
                self.checkpoints.pop((step[0], number), None)
            return None
        if any(record.epoch == TOO_LARGE for record in step):
            return BadRecord
        for record in step:
            if isinstance(record, TaskRecord):
                self.tasks[record.task_id] = record
            else:
                self.checkpoints[record.task_id, record.round] = record
        self.messages.append(message)
        return None

    def readable_checkpoints(self) -> dict[tuple[str, int], CheckpointRecord]:
        """Those up to their task's version: a later one was damaged, and the task fell back."""
        versions = {task_id: task.version for task_id, task in self.tasks.items()}
        return {key: c for key, c in self.checkpoints.items() if c.round <= versions.get(c.task_id, c.round)}


async def _apply(ledger: Ledger, step: Step, message: str) -> None:
    if isinstance(step, tuple):
        await ledger.drop_checkpoints(*step)
    else:
        await ledger.save(step, [a.event(message)])


async def _compare(opener: Opener, folder: Path, steps: list[tuple[Step, bool]]) -> None:
    ledger, model = await opener(folder), Model()
    started: list[asyncio.Task[None]] = []
    expected = []
    for number, (step, wait) in enumerate(steps):
        doing: Coroutine[Any, Any, None] = _apply(ledger, step, str(number))
        started.append(asyncio.create_task(doing))
        expected.append(model.apply(step, str(number)))
        if wait:
            await asyncio.wait([started[-1]])
    outcomes = await asyncio.gather(*started, return_exceptions=True)
    assert [None if outcome is None else type(outcome) for outcome in outcomes] == expected
    await ledger.close()

    ledger = await opener(folder)
    assert {task.task_id: task for task in (await ledger.load()).tasks} == model.tasks
    kept = [c for name in ("t1", "t2") for c in await ledger.checkpoints(name)]
    assert {(c.task_id, c.round): c for c in kept} == model.readable_checkpoints()
    assert [n.entry.message for n in await ledger.events(None)] == model.messages
    await ledger.close()


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_the_ledger_does_what_dictionaries_would(opener: Opener) -> None:
    @settings(deadline=None, max_examples=25)
    @given(_steps)
    def check(steps: list[tuple[Step, bool]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_compare(opener, Path(folder), steps))

    check()
