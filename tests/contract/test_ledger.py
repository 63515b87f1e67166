"""What every ledger must do, whatever keeps it. A new implementation joins by a line in ``OPENERS``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import RoundState
from protocol.errors import Conflict, Unavailable
from storage.errors import BadRecord
from storage.ledger import Ledger
from tests.storage import records as a

Opener = Callable[[Path], Awaitable[Ledger]]
OPENERS: dict[str, Opener] = {"sqlite": lambda folder: Ledger.open(folder / "ledger.db")}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param]


@pytest.fixture
async def ledger(opener: Opener, tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = await opener(tmp_path)
    yield ledger
    await ledger.close()


async def test_what_was_saved_is_there_after_a_restart(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    saved = (a.task(version=a.checkpoint().round), a.client(), a.round_(), a.assignment(), a.checkpoint())
    await ledger.save(saved, (a.event(), a.log(), a.metric()))
    await ledger.close()
    ledger = await opener(tmp_path)
    found = await ledger.load()
    assert (*found.tasks, *found.clients, *found.rounds, *found.assignments, *found.checkpoints) == saved
    assert [n.entry for n in await ledger.events(None)] == [a.event()]
    assert [n.entry for n in await ledger.logs("t1")] == [a.log()]
    assert [n.entry for n in await ledger.metrics("t1")] == [a.metric()]
    await ledger.close()


async def test_saving_a_record_again_replaces_it(ledger: Ledger) -> None:
    first = a.task()
    later = replace(first, state=TaskState.PAUSED, version=7, loss=0.25, metrics={"accuracy": 0.5})
    await ledger.save([first])
    await ledger.save([later])
    assert (await ledger.load()).tasks == (later,)
    other_spec = replace(later, spec=a.spec("another"))
    await ledger.save([other_spec])
    assert await ledger.task("t1") == other_spec


async def test_load_gives_only_what_a_restart_needs(ledger: Ledger) -> None:
    held = [a.assignment(state.value, state=state) for state in AssignmentState]
    rounds = [a.round_(number=number, state=state) for number, state in enumerate(RoundState)]
    checkpoints = [a.checkpoint(task, number) for task in ("t1", "t2") for number in (0, 1, 10)]
    tasks = [a.task(state.value, state=state) for state in TaskState]
    tasks += [a.task("t1", version=10), a.task("t2", version=9)]  # t2 fell back from a damaged checkpoint
    await ledger.save([*held, *rounds, *checkpoints, *tasks])
    found = await ledger.load()
    assert {x.state for x in found.assignments} == {
        AssignmentState.OFFERED,
        AssignmentState.ACCEPTED,
        AssignmentState.RUNNING,
    }
    assert [x.state for x in found.rounds] == [RoundState.OPEN]
    assert sorted((x.task_id, x.round) for x in found.checkpoints) == [("t1", 10), ("t2", 1)]
    assert {x.state for x in found.tasks} == set(TaskState)


async def test_lookups_of_unknown_keys_give_none_or_nothing(ledger: Ledger) -> None:
    assert await ledger.task("t9") is None
    assert await ledger.task_by_token("x") is None
    assert await ledger.checkpoint("t9") is None
    assert await ledger.rounds("t9") == await ledger.assignments("t9") == await ledger.checkpoints("t9") == []
    assert await ledger.events("t9") == await ledger.logs("t9") == await ledger.metrics("t9") == []
    assert await ledger.referenced_digests() == set()
    assert (await ledger.load()).tasks == ()


async def test_a_save_is_whole_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(BadRecord):
        await ledger.save([a.task(), a.client(incarnation=2**63)], [a.event()])
    assert (await ledger.load()).tasks == ()
    assert await ledger.events(None) == []


async def test_a_bad_record_fails_only_its_own_save(ledger: Ledger) -> None:
    good = [ledger.submit([a.task(f"t{n}")], [a.event(str(n))]) for n in range(3)]
    bad = [
        ledger.submit([a.task("bad", version=2**63)], [a.event("bad")]),
        ledger.submit([], [a.metric(step_too_large())]),
    ]
    good += [ledger.submit([a.task(f"t{n}")], [a.event(str(n))]) for n in range(3, 6)]
    outcomes = await asyncio.gather(*good, *bad, return_exceptions=True)
    assert outcomes[:6] == [None] * 6
    assert all(isinstance(outcome, BadRecord) for outcome in outcomes[6:])
    assert [n.entry.message for n in await ledger.events(None)] == [str(n) for n in range(6)]
    assert await ledger.task("bad") is None


def step_too_large() -> Any:
    return object()


async def test_submitted_saves_are_written_in_order(ledger: Ledger) -> None:
    task = a.task()
    futures = [ledger.submit([replace(task, version=n)], [a.event(str(n))]) for n in range(50)]
    await futures[-1]
    assert all(future.done() for future in futures)
    found = await ledger.task("t1")
    assert found is not None
    assert found.version == 49
    assert [n.entry.message for n in await ledger.events("t1")] == [str(n) for n in range(50)]


async def test_a_cancelled_caller_does_not_undo_or_disturb_the_save(ledger: Ledger) -> None:
    caller = asyncio.ensure_future(ledger.save([a.task()]))
    await asyncio.sleep(0)
    caller.cancel()
    await ledger.save([a.task("t2")])
    assert {task.task_id for task in (await ledger.load()).tasks} == {"t1", "t2"}


async def test_one_task_a_submit_token(ledger: Ledger) -> None:
    racing = [ledger.save([a.task(name, submit_token="once")]) for name in ("t1", "t2", "t3")]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert outcomes[0] is None
    assert all(isinstance(outcome, Conflict) and "submit token" in outcome.message for outcome in outcomes[1:])
    found = await ledger.task_by_token("once")
    assert found is not None
    assert found.task_id == "t1"
    await ledger.save([replace(found, version=3), a.task("t4"), a.task("t5")])  # the owner again; two without any


async def test_rounds_come_newest_first_up_to_the_limit(ledger: Ledger) -> None:
    await ledger.save([a.round_(number=n) for n in range(12)] + [a.round_("t2", 99)])
    assert [r.number for r in await ledger.rounds("t1", 5)] == [11, 10, 9, 8, 7]
    assert len(await ledger.rounds("t1")) == 12


async def test_assignments_come_by_round_and_position(ledger: Ledger) -> None:
    await ledger.save(
        [
            a.assignment("a4", round=2, position=0, counted=True),
            a.assignment("a3", round=1, position=60, counted=True),
            a.assignment("a2", round=1, position=0, state=AssignmentState.EXPIRED),
            a.assignment("b1", "t2"),
        ]
    )
    assert [x.assignment_id for x in await ledger.assignments("t1")] == ["a2", "a3", "a4"]
    assert [x.assignment_id for x in await ledger.assignments("t1", counted_only=True)] == ["a3", "a4"]


async def test_checkpoints_are_kept_until_dropped(ledger: Ledger) -> None:
    await ledger.save([a.checkpoint(round=n) for n in (0, 2, 10)] + [a.checkpoint("t2", 2)])
    assert await ledger.checkpoint("t1") == a.checkpoint(round=10)
    assert await ledger.checkpoint("t1", 2) == a.checkpoint(round=2)
    await ledger.drop_checkpoints("t1", [2, 3])
    assert [c.round for c in await ledger.checkpoints("t1")] == [0, 10]
    assert await ledger.checkpoint("t1", 2) is None
    assert [c.round for c in await ledger.checkpoints("t2")] == [2]


async def test_a_checkpoint_saved_after_its_drop_is_there(ledger: Ledger) -> None:
    await ledger.save([a.checkpoint(round=1)])
    await asyncio.gather(ledger.drop_checkpoints("t1", [1]), ledger.save([a.checkpoint(round=1, epoch=5)]))
    assert await ledger.checkpoint("t1", 1) == a.checkpoint(round=1, epoch=5)


async def test_feeds_go_on_after_a_number(ledger: Ledger) -> None:
    await ledger.save([], [a.event(str(n), "t1" if n % 2 else None) for n in range(6)])
    first = await ledger.events(None, limit=4)
    rest = await ledger.events(None, after=first[-1].seq)
    assert [n.entry.message for n in (*first, *rest)] == ["0", "1", "2", "3", "4", "5"]
    assert [n.seq for n in (*first, *rest)] == sorted({n.seq for n in (*first, *rest)})
    assert [n.entry.message for n in await ledger.events("t1")] == ["1", "3", "5"]
    assert await ledger.events(None, after=rest[-1].seq) == []
    await ledger.save([], [a.log("x"), a.log("y", "t2"), a.metric(1.0), a.metric(2.0, "t2")])
    assert [n.entry.text for n in await ledger.logs("t1")] == ["x"]
    assert [n.entry.value for n in await ledger.metrics("t1")] == [1.0]


async def test_a_metric_that_is_no_number_is_kept(ledger: Ledger) -> None:
    await ledger.save([a.round_(metrics={"loss": math.nan}, loss=math.nan)], [a.metric(math.nan), a.metric(-math.inf)])
    values = [n.entry.value for n in await ledger.metrics("t1")]
    assert math.isnan(values[0])
    assert values[1] == -math.inf
    assert (await ledger.rounds("t1"))[0].loss is None


async def test_nothing_is_taken_after_the_close(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    pending = ledger.submit([a.task()])
    await ledger.close()
    assert pending.done()
    assert pending.exception() is None
    with pytest.raises(Unavailable, match="closed"):
        await ledger.save([a.task()])
    await ledger.close()


class TestReferencedDigests:
    """What garbage collection must leave alone."""

    @pytest.mark.parametrize("state", TaskState)
    async def test_of_a_task(self, ledger: Ledger, state: TaskState) -> None:
        await ledger.save([a.task(state=state)])
        ended = state in {TaskState.COMPLETED, TaskState.CANCELLED}
        training = {a.ref(f"t1/{name}").digest for name in ("code", "shard0", "shard1")}
        assert await ledger.referenced_digests() == {a.ref("t1/initial").digest} | (set() if ended else training)

    async def test_of_kept_checkpoints(self, ledger: Ledger) -> None:
        await ledger.save(
            [a.checkpoint(round=0, optimizer=None, manifest=None), a.checkpoint(round=1), a.checkpoint(round=2)]
        )
        await ledger.drop_checkpoints("t1", [1])
        names = ("t1/0/weights", "t1/2/weights", "t1/2/optimizer", "t1/2/manifest")
        assert await ledger.referenced_digests() == {a.ref(name).digest for name in names}

    async def test_of_updates_until_their_round_is_decided(self, ledger: Ledger) -> None:
        delivered = AssignmentState.DELIVERED
        await ledger.save(
            [
                a.round_(number=5, state=RoundState.OPEN, attempt=2),
                a.assignment("a1", round=5, attempt=2, state=delivered, update=a.ref("waits")),
                a.assignment("a2", round=5, attempt=1, state=delivered, update=a.ref("of an abandoned attempt")),
                a.assignment("a3", round=5, attempt=2, state=delivered, update=a.ref("counted"), counted=True),
                a.round_(number=4, state=RoundState.COMMITTED),
                a.assignment("a4", round=4, state=delivered, update=a.ref("too late")),
            ]
        )
        assert await ledger.referenced_digests() == {a.ref("waits").digest}
