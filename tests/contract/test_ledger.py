"""What every ledger must do, whatever keeps it. A new implementation joins by a line in ``OPENERS``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.lifecycle import ACTIVE, AssignmentState, TaskState
from coordinator.records import FailedItemRecord, OutputRecord, RemovedClient, RoundState
from protocol.errors import Conflict, Unavailable
from protocol.tasks import BlobRef
from storage.errors import BadRecord
from storage.ledger import SqlLedger
from storage.mapping import blob_rows
from storage.memory_facts import MemoryFacts
from storage.memory_ledger import MemoryLedger
from storage.ports.ledger import CreditBy, CreditQuery, CreditSum, History, Ledger, TaskEnd, TaskKey
from tests.contract.holds import holds
from tests.storage import records as a

Opener = Callable[[Path], Awaitable[Ledger]]
_FACTS: dict[Path, MemoryFacts] = {}
"""What outlives a ledger in memory, by the folder that another one would keep it in."""


async def _in_memory(folder: Path) -> Ledger:
    return MemoryLedger(_FACTS.setdefault(folder, MemoryFacts()))


OPENERS: dict[str, Opener] = {"sqlite": lambda folder: SqlLedger.open(folder / "ledger.db"), "memory": _in_memory}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param]


@pytest.fixture
async def ledger(opener: Opener, tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = await opener(tmp_path)
    yield ledger
    await ledger.close()


@holds(
    "What was saved MUST be there after a restart",
    "An answer MUST show every save that was acknowledged before the question",
)
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


@holds("Saving a record again MUST replace it")
async def test_saving_a_record_again_replaces_it(ledger: Ledger) -> None:
    first = a.task()
    later = replace(first, state=TaskState.PAUSED, version=7, loss=0.25, metrics={"accuracy": 0.5})
    await ledger.save([first])
    await ledger.save([later])
    assert (await ledger.load()).tasks == (later,)
    other_spec = replace(later, spec=a.spec("another"))
    await ledger.save([other_spec])
    assert await ledger.task("t1") == other_spec


@holds(
    "That MUST be all clients and the tasks that have not ended, open rounds, held assignments",
    "it MUST tell the highest fence of all assignments ever, and the latest submission or end of any task",
)
async def test_load_gives_only_what_a_restart_needs(ledger: Ledger) -> None:
    held = [a.assignment(state.value, state=state) for state in AssignmentState]
    rounds = [a.round_(number=number, state=state) for number, state in enumerate(RoundState)]
    names = ("t1", "t2", TaskState.COMPLETED, TaskState.FAILED)
    checkpoints = [a.checkpoint(task, number) for task in names for number in (0, 1, 10)]
    tasks = [a.task(state.value, state=state, version=10) for state in TaskState]
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
    assert {x.task_id for x in found.tasks} == {*ACTIVE, "t1", "t2"}


async def test_load_tells_of_what_it_leaves_out(ledger: Ledger) -> None:
    assert (await ledger.load()).newest_at == 0.0
    await ledger.save([a.task("t1", created_at=7.0), a.assignment("a1", fence=12, state=AssignmentState.DELIVERED)])
    await ledger.save([a.task("t2", state=TaskState.FAILED, created_at=5.0, finished_at=9.0)])
    found = await ledger.load()
    assert ([x.task_id for x in found.tasks], found.newest_at, found.last_fence) == (["t1"], 9.0, 12)
    await ledger.save([a.task("t3", state=TaskState.CANCELLED, created_at=10.0)])
    assert (await ledger.load()).newest_at == 10.0


@holds(
    "They MUST come newest first",
    "a walk from page to page MUST meet each task once that was there when it began",
)
async def test_tasks_are_listed_page_by_page(ledger: Ledger) -> None:
    times = {"t1": 1.0, "t2": 2.0, "t3": 2.0, "t4": 2.0, "t5": 3.0}
    await ledger.save([a.task(name, created_at=at, state=TaskState.COMPLETED) for name, at in times.items()])
    first = await ledger.task_page(2)
    assert [key.task_id for key in first] == ["t5", "t4"]
    await ledger.save([a.task("t6", created_at=4.0)])
    await ledger.remove_task("t4")
    rest = await ledger.task_page(2, first[-1])
    assert [key.task_id for key in rest] == ["t3", "t2"]
    assert [key.task_id for key in await ledger.task_page(9, rest[-1])] == ["t1"]
    assert [key.task_id for key in await ledger.task_page(9)] == ["t6", "t5", "t3", "t2", "t1"]
    assert await ledger.task_page(9, TaskKey(1.0, "t1")) == []


@holds("unknown ones MUST be left out", "it MUST count all, and name no state that none is in")
async def test_several_tasks_are_read_and_all_are_counted(ledger: Ledger) -> None:
    assert await ledger.task_counts() == {}
    ended = [a.task(f"t{n}", state=TaskState.COMPLETED, finished_at=2.0) for n in range(20)]
    await ledger.save([*ended, a.task("t20")])
    assert await ledger.task_counts() == {TaskState.COMPLETED: 20, TaskState.RUNNING: 1}
    found = await ledger.tasks([*(task.task_id for task in ended), "t9", "t99"])
    assert sorted(found, key=lambda task: int(task.task_id[1:])) == ended
    assert await ledger.tasks([]) == []
    assert await ledger.task_end("t3") == TaskEnd("t3", TaskState.COMPLETED, 2.0)
    assert await ledger.task_end("t20") == TaskEnd("t20", TaskState.RUNNING, None)


@holds("What was never saved MUST be answered with None, or with nothing")
async def test_lookups_of_unknown_keys_give_none_or_nothing(ledger: Ledger) -> None:
    assert await ledger.task("t9") is None
    assert await ledger.task_end("t9") is None
    assert await ledger.task_by_token("x") is None
    assert await ledger.checkpoint("t9") is None
    assert await ledger.rounds("t9") == await ledger.assignments("t9") == await ledger.checkpoints("t9") == []
    assert await ledger.events("t9") == await ledger.logs("t9") == await ledger.metrics("t9") == []
    assert await ledger.referenced_digests() == set()
    assert (await ledger.load()).tasks == ()


@holds("A save MUST be written whole or not at all")
async def test_a_save_is_whole_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(BadRecord):
        await ledger.save([a.task(), a.client(incarnation=2**63)], [a.event()])
    assert (await ledger.load()).tasks == ()
    assert await ledger.events(None) == []


@holds("one that is refused MUST fail alone")
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


@holds("Saves MUST be written in the order of their submission")
async def test_submitted_saves_are_written_in_order(ledger: Ledger) -> None:
    task = a.task()
    futures = [ledger.submit([replace(task, version=n)], [a.event(str(n))]) for n in range(50)]
    await futures[-1]
    assert all(future.done() for future in futures)
    found = await ledger.task("t1")
    assert found is not None
    assert found.version == 49
    assert [n.entry.message for n in await ledger.events("t1")] == [str(n) for n in range(50)]


@holds("A cancelled caller MUST neither undo its save nor disturb another one")
async def test_a_cancelled_caller_does_not_undo_or_disturb_the_save(ledger: Ledger) -> None:
    caller = asyncio.ensure_future(ledger.save([a.task()]))
    await asyncio.sleep(0)
    caller.cancel()
    await ledger.save([a.task("t2")])
    assert {task.task_id for task in (await ledger.load()).tasks} == {"t1", "t2"}


@holds("there MUST be one task a token")
async def test_one_task_a_submit_token(ledger: Ledger) -> None:
    racing = [ledger.save([a.task(name, submit_token="once")]) for name in ("t1", "t2", "t3")]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert outcomes[0] is None
    assert all(isinstance(outcome, Conflict) and "submit token" in outcome.message for outcome in outcomes[1:])
    found = await ledger.task_by_token("once")
    assert found is not None
    assert found.task_id == "t1"
    await ledger.save([replace(found, version=3), a.task("t4"), a.task("t5")])  # the owner again; two without any


@holds("they MUST come newest first, and no more than ``limit``")
async def test_rounds_come_newest_first_up_to_the_limit(ledger: Ledger) -> None:
    await ledger.save([a.round_(number=n) for n in range(12)] + [a.round_("t2", 99)])
    assert [r.number for r in await ledger.rounds("t1", 5)] == [11, 10, 9, 8, 7]
    assert len(await ledger.rounds("t1")) == 12


@holds("which MUST come by round and position")
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


@holds("which MUST come oldest first, without any beyond the task's version", "unknown ones MUST be no error")
async def test_checkpoints_are_kept_until_dropped(ledger: Ledger) -> None:
    await ledger.save([a.checkpoint(round=n) for n in (0, 2, 10)] + [a.checkpoint("t2", 2)])
    assert await ledger.checkpoint("t1") == a.checkpoint(round=10)
    assert await ledger.checkpoint("t1", 2) == a.checkpoint(round=2)
    await ledger.drop_checkpoints("t1", [2, 3])
    assert [c.round for c in await ledger.checkpoints("t1")] == [0, 10]
    assert await ledger.checkpoint("t1", 2) is None
    assert [c.round for c in await ledger.checkpoints("t2")] == [2]
    await ledger.save([a.task("t1", version=5)])
    assert [c.round for c in await ledger.checkpoints("t1")] == [0]
    assert await ledger.checkpoint("t1") == a.checkpoint(round=0)


@holds("one saved later MUST be there")
async def test_a_checkpoint_saved_after_its_drop_is_there(ledger: Ledger) -> None:
    await ledger.save([a.checkpoint(round=1)])
    await asyncio.gather(ledger.drop_checkpoints("t1", [1]), ledger.save([a.checkpoint(round=1, epoch=5)]))
    assert await ledger.checkpoint("t1", 1) == a.checkpoint(round=1, epoch=5)


@holds("A feed MUST go on behind the number ``after``, oldest first, with no entry twice and none left out")
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


@holds("A value that is no number MUST come back as such")
async def test_a_metric_that_is_no_number_is_kept(ledger: Ledger) -> None:
    await ledger.save([a.round_(metrics={"loss": math.nan}, loss=math.nan)], [a.metric(math.nan), a.metric(-math.inf)])
    values = [n.entry.value for n in await ledger.metrics("t1")]
    assert math.isnan(values[0])
    assert values[1] == -math.inf
    assert (await ledger.rounds("t1"))[0].loss is None


@holds(
    "they MUST be exact, and come with the most FLOPs first, then the most samples",
    "Entries of one key MUST be added up",
)
async def test_credit_adds_up(ledger: Ledger) -> None:
    last = 10**9 - 1
    await ledger.save(
        [],
        [
            a.credit("c1", "red", day=3, measured_samples=60, gigaflops=2**62, flops=last),
            a.credit("c1", "red", day=3, measured_samples=60, gigaflops=1, flops=last),
            a.credit("c1", "red", "t2", day=5, samples=1),
        ],
    )
    await ledger.save([], [a.credit("c2", day=4, samples=200), a.credit("c3", day=4), a.credit("c2", day=4)])
    await ledger.save([], [a.credit("c3", day=4, assignments=-1, samples=-60)])
    c1 = CreditSum("c1", 3, 121, 120, (2**62 + 1) * 10**9 + 2 * last, 3, 5)
    c2 = CreditSum("c2", 2, 260, 0, 0, 4, 4)
    assert await ledger.credit(CreditQuery(CreditBy.CLIENT)) == [c1, c2]
    assert await ledger.credit(CreditQuery(CreditBy.CLIENT, since_day=4, client_id="c2")) == [c2]
    assert [one.samples for one in await ledger.credit(CreditQuery(CreditBy.CLIENT, since_day=4))] == [260, 1]
    assert [one.key for one in await ledger.credit(CreditQuery(CreditBy.TEAM))] == ["red", ""]
    assert [one.key for one in await ledger.credit(CreditQuery(CreditBy.TASK, team="red"))] == ["t1", "t2"]
    assert await ledger.credit(CreditQuery(CreditBy.CLIENT, task_id="t2")) == [CreditSum("c1", 1, 1, 0, 0, 5, 5)]
    loaded = {one.client_id: (one.samples, one.flops) for one in (await ledger.load()).credits}
    assert loaded == {"c1": (121, c1.flops), "c2": (260, 0), "c3": (0, 0)}


@holds("credit MUST stay when its task or its client is removed")
async def test_credit_outlives_task_and_client(ledger: Ledger) -> None:
    await ledger.save([a.task(), a.client()], [a.credit()])
    await ledger.remove_task("t1")
    await ledger.save([RemovedClient("c1")])
    assert await ledger.credit(CreditQuery(CreditBy.CLIENT)) == [CreditSum("c1", 1, 60, 0, 0, 0, 0)]


@holds("a later save MUST be refused with Unavailable")
async def test_nothing_is_taken_after_the_close(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    pending = ledger.submit([a.task()])
    await ledger.close()
    assert pending.done()
    assert pending.exception() is None
    with pytest.raises(Unavailable, match="closed"):
        await ledger.save([a.task()])
    await ledger.close()


@holds("Bytes that ride inside a reference (``BlobRef.carried``) MUST NOT be kept")
async def test_bytes_inside_references_are_not_kept(ledger: Ledger) -> None:
    def inside(ref: BlobRef) -> BlobRef:
        return ref.model_copy(update={"inline": b"x" * ref.size_bytes})

    task, checkpoint, assignment = a.task(version=9), a.checkpoint(), a.assignment(update=a.ref("update"))
    spec = task.spec.model_copy(update={"initial_weights": inside(task.spec.initial_weights)})
    await ledger.save(
        [
            replace(task, spec=spec),
            replace(checkpoint, weights=inside(checkpoint.weights)),
            replace(assignment, update=inside(a.ref("update"))),
        ]
    )
    assert await ledger.task("t1") == task
    assert await ledger.checkpoint("t1", checkpoint.round) == checkpoint
    assert await ledger.assignments("t1") == [assignment]


async def _rows(ledger: Ledger, task_id: str) -> list[list[object]]:
    """Return all that is recorded of a task."""
    return [
        [await ledger.task(task_id)],
        list(await ledger.rounds(task_id)),
        list(await ledger.assignments(task_id)),
        list(await ledger.checkpoints(task_id)),
        list(await ledger.events(task_id)),
        list(await ledger.logs(task_id)),
        list(await ledger.metrics(task_id)),
    ]


async def _save_history(ledger: Ledger, task_id: str) -> None:
    for number in range(4):
        await ledger.save(
            [a.round_(task_id, number), a.assignment(f"{task_id}-{number}", task_id, round=number)],
            [a.event(str(number), task_id), a.log(str(number), task_id), a.metric(number, task_id)],
        )
    await ledger.save([a.task(task_id, version=9), a.checkpoint(task_id, 3)])


@holds("which MUST leave every other row")
@pytest.mark.parametrize("history", History)
async def test_a_history_is_pruned_up_to_a_number_and_nothing_else(ledger: Ledger, history: History) -> None:
    await _save_history(ledger, "t1")
    await _save_history(ledger, "t2")
    before, other = await _rows(ledger, "t1"), await _rows(ledger, "t2")
    assert await ledger.beyond(history, "t1", 4) is None
    upto = await ledger.beyond(history, "t1", 1)
    assert upto is not None
    assert await ledger.count_upto(history, "t1", upto) == 3
    assert await ledger.prune(history, "t1", upto) == 3
    assert await ledger.beyond(history, "t1", 1) is None
    after = await _rows(ledger, "t1")
    assert sorted(len(rows) for rows in before) == [1, 1, 4, 4, 4, 4, 4]
    assert [one for one in range(7) if after[one] != before[one]] == [_PLACES[history]]
    assert len(after[_PLACES[history]]) == 1
    assert await _rows(ledger, "t2") == other


_PLACES = {History.ROUNDS: 1, History.ASSIGNMENTS: 2, History.EVENTS: 4, History.LOGS: 5, History.METRICS: 6}
"""Where ``_rows`` has each history."""


@holds("MUST leave every other task whole")
async def test_a_removed_task_is_gone_and_no_other(ledger: Ledger) -> None:
    await _save_history(ledger, "t1")
    await _save_history(ledger, "t2")
    other = await _rows(ledger, "t2")
    for _ in range(2):
        await ledger.remove_task("t1")
        assert await _rows(ledger, "t1") == [[None], [], [], [], [], [], []]
    assert await _rows(ledger, "t2") == other
    assert [end.task_id for end in await ledger.task_ends()] == ["t2"]
    await ledger.save([], [a.event("anew", "t1")])
    assert (await ledger.events())[-1].seq > max(n.seq for n in await ledger.events("t2"))


@holds("it MUST be the largest first, and a blob named twice by a task counts once")
async def test_what_each_task_takes(ledger: Ledger) -> None:
    await ledger.save([a.task("t1", version=9), a.task("t2", version=9), a.checkpoint("t2", 3)], [a.log("x", "t2")])
    spec = a.task("t1").spec
    refs = {
        ref.digest: ref.size_bytes for ref in (spec.code, spec.initial_weights, *(s.blob for s in spec.dataset.shards))
    }
    usage = await ledger.usage()
    assert [(one.task_id, one.rows) for one in usage] == [("t2", 1), ("t1", 0)]
    assert usage[1].blob_bytes == sum(refs.values())
    await ledger.save([a.checkpoint("t1", 0, weights=spec.initial_weights, optimizer=None, manifest=None)])
    assert {one.task_id: one.blob_bytes for one in await ledger.usage()}["t1"] == sum(refs.values())


class TestReferencedDigests:
    """What garbage collection must leave alone."""

    @holds("A task MUST keep its initial and frozen weights for ever")
    @pytest.mark.parametrize("state", TaskState)
    async def test_of_a_task(self, ledger: Ledger, state: TaskState) -> None:
        await ledger.save([a.task(state=state)])
        ended = state in {TaskState.COMPLETED, TaskState.CANCELLED}
        training = {a.ref(f"t1/{name}").digest for name in ("code", "shard0", "shard1")}
        assert await ledger.referenced_digests() == {a.ref("t1/initial").digest} | (set() if ended else training)

    @holds("those of one that ended at ``ended_since`` (seconds) or later MUST be named too")
    @pytest.mark.parametrize("state", [TaskState.COMPLETED, TaskState.CANCELLED])
    async def test_of_a_task_that_ended_a_while_ago(self, ledger: Ledger, state: TaskState) -> None:
        await ledger.save([a.task(state=state, finished_at=50.0)])
        initial = a.ref("t1/initial").digest
        all_of_it = {a.ref(f"t1/{name}").digest for name in ("code", "shard0", "shard1")} | {initial}
        assert await ledger.referenced_digests(ended_since=50.0) == all_of_it
        assert await ledger.referenced_digests(ended_since=50.5) == {initial}
        assert await ledger.referenced_digests() == {initial}

    async def test_of_kept_checkpoints(self, ledger: Ledger) -> None:
        await ledger.save(
            [a.checkpoint(round=0, optimizer=None, manifest=None), a.checkpoint(round=1), a.checkpoint(round=2)]
        )
        await ledger.drop_checkpoints("t1", [1])
        names = ("t1/0/weights", "t1/2/weights", "t1/2/optimizer", "t1/2/manifest")
        assert await ledger.referenced_digests() == {a.ref(name).digest for name in names}

    @holds("an update MUST be kept until its round is decided")
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


@holds("They MUST come in the order of their positions, and MUST stay as failed steps do")
async def test_outputs_are_listed_from_a_position_on(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    parts = [OutputRecord("t1", position, 10, f"{position:064d}", 5) for position in (0, 10, 90, 100, 10**15)]
    other = OutputRecord("t10", 0, 10, "e" * 64, 5)
    await ledger.save([a.task(), *reversed(parts), other])
    assert await ledger.outputs("t1") == parts
    assert await ledger.outputs("t1", 11) == parts[1:]
    assert await ledger.outputs("t1", 20) == parts[2:], "the items from 20 to 90 have none"
    assert await ledger.outputs("t1", 10, limit=2) == parts[1:3]
    assert {part.digest for part in parts} <= await ledger.referenced_digests()
    await ledger.save([a.task(state=TaskState.COMPLETED, finished_at=3.0)])
    assert await ledger.outputs("t1") == parts
    assert {part.digest for part in parts} <= await ledger.referenced_digests()
    await ledger.remove_task("t1")
    assert await ledger.outputs("t1") == []
    await ledger.close()


@holds("They MUST come in the order of their positions, and MUST stay for as long as the outputs do")
async def test_failed_items_are_listed_from_a_position_on(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    places = (3, 20, 100, 10**15)
    items = [FailedItemRecord("t1", place, "the executor was killed by SIGSEGV", ("ada", "bob")) for place in places]
    await ledger.save([a.task(), *reversed(items), FailedItemRecord("t10", 4, "no", ())])
    assert await ledger.failed_items("t1") == items
    assert await ledger.failed_items("t1", 20, limit=2) == items[1:3]
    await ledger.save([a.task(state=TaskState.COMPLETED, finished_at=3.0)])
    await ledger.close()
    ledger = await opener(tmp_path)
    assert await ledger.failed_items("t1", 21) == items[2:]
    await ledger.remove_task("t1")
    assert await ledger.failed_items("t1") == []
    assert len(await ledger.failed_items("t10")) == 1
    await ledger.close()


@holds("Return the task's artefacts, which MUST come by epoch and name, and MUST stay as failed steps do")
async def test_artefacts_stay_with_their_task(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    files = [a.artefact(epoch=2), a.artefact(epoch=10, name="in/b: c.txt"), a.artefact(epoch=10, name="z.png")]
    await ledger.save([a.task(state=TaskState.COMPLETED, finished_at=5.0), *reversed(files), a.artefact("t2")])
    assert await ledger.artefacts("t1") == files
    assert await ledger.failed_steps("t1") == []
    assert {file.digest for file in files} <= await ledger.referenced_digests()
    named = {use.task_id: use.blob_bytes for use in await ledger.usage()}
    await ledger.close()
    ledger = await opener(tmp_path)
    assert await ledger.artefacts("t1") == files
    await ledger.remove_task("t1")
    assert await ledger.artefacts("t1") == []
    assert not {file.digest for file in files} & await ledger.referenced_digests()
    assert named["t1"] == sum(row["size_bytes"] for row in blob_rows("t1", a.spec("t1"))) + 3 * files[0].size_bytes
    await ledger.close()


@holds(
    "Return the task's failed steps, which MUST come by their lines",
    "They, and their blobs, MUST stay for as long as the task does",
)
async def test_failed_steps_stay_with_their_task(opener: Opener, tmp_path: Path) -> None:
    ledger = await opener(tmp_path)
    later, first = a.failed_step(line="t.py:9, in loss"), a.failed_step(line="t.py:3, in loss")
    await ledger.save([a.task(), a.task("t2", state=TaskState.CANCELLED, finished_at=5.0)])
    await ledger.save([later, first, a.failed_step("t2")])
    await ledger.save([first])
    assert await ledger.failed_steps("t1") == [first, later]
    assert await ledger.failed_steps("nosuch") == []
    assert (await ledger.load()).failed_steps == (first, later), "those of tasks that have not ended"
    assert {first.digest, later.digest, a.failed_step("t2").digest} <= await ledger.referenced_digests()
    named = {use.task_id: use.blob_bytes for use in await ledger.usage()}
    await ledger.close()
    ledger = await opener(tmp_path)
    assert await ledger.failed_steps("t1") == [first, later]
    await ledger.remove_task("t1")
    assert await ledger.failed_steps("t1") == []
    assert first.digest not in await ledger.referenced_digests()
    assert named["t1"] == sum(row["size_bytes"] for row in blob_rows("t1", a.spec("t1"))) + 2 * first.size_bytes
    await ledger.close()
