"""Defects that somebody could make. The simulation must find each of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator import (
    durability,
    early_stopping,
    eligibility,
    engine,
    failures,
    fleet,
    handing_out,
    in_flight,
    leases,
    offers,
    pipelining,
    planning,
    policies,
    pools,
    recovery,
    results,
    round_plan,
    rounds,
    scheduling,
    state,
    step_ends,
    tasks,
    verdict,
    views,
)
from coordinator.commands import DropUpdate, Fold, Save, Send
from coordinator.credit import entry_of
from coordinator.farm import FarmState
from coordinator.in_flight import Lease, Stage
from coordinator.leases import LeaseBook
from coordinator.lifecycle import ENDED
from coordinator.planning import fixed_parts
from coordinator.records import AssignmentRecord
from coordinator.state import ClientState, Step, TaskRun
from coordinator.turn import Turn
from protocol.assignments import Ack, Assign, Cancel, Kind
from protocol.sandbox import Rung
from protocol.tasks import TaskSpec
from tests.simulation import server

Mutant = Callable[[pytest.MonkeyPatch], None]


def fold_twice(patch: pytest.MonkeyPatch) -> None:
    """Every tenth update is folded a second time."""
    do, folds = Turn.do, [0]

    def twice(turn: Turn, command: Any) -> None:
        do(turn, command)
        folds[0] += isinstance(command, Fold)
        if isinstance(command, Fold) and folds[0] % 10 == 0:
            do(turn, command)

    patch.setattr(Turn, "do", twice)


def fold_in_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    """Updates do not wait for their turn."""
    in_turn = rounds.fold_in_turn
    patch.setattr(results, "fold_in_turn", lambda turn, run, step: in_turn(turn, run, step, skip_gaps=True))


def lose_parts(patch: pytest.MonkeyPatch) -> None:
    """The part of a lost lease is not returned."""
    patch.setattr(leases, "insort", lambda *_args, **_more: None)


def forget_the_leftover(patch: pytest.MonkeyPatch) -> None:
    """A round that commits at quorum owes nothing."""
    patch.setattr(rounds, "_owed_after", lambda *_args: ())


def skip_the_journal(patch: pytest.MonkeyPatch) -> None:
    """Commands do not wait for the save before them, and a crash comes in between."""

    def at_once(shell: Any) -> None:
        while shell._queue and not shell.crashed:
            head = shell._queue.popleft()
            if not isinstance(head, server.Ticket):
                shell._carry_out(head)

    patch.setattr(server.Server, "_advance", at_once)


def count_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """A delivered assignment is saved as counted at once, and may be abandoned later."""
    deliver = results._deliver

    def early(turn: Turn, run: Any, lease: Any, event: Any) -> None:
        deliver(turn, run, lease, event)
        turn.save(replace(lease.record, counted=True))

    patch.setattr(results, "_deliver", early)


def save_half_a_commit(patch: pytest.MonkeyPatch) -> None:
    """The task's new version is saved apart from its assignments."""
    answer = Turn.answer

    def halves(turn: Turn) -> list[Any]:
        commands = answer(turn)
        if not commands or not isinstance(commands[0], Save):
            return commands
        kept = tuple(r for r in commands[0].records if not (isinstance(r, AssignmentRecord) and r.counted))
        return [Save(kept, commands[0].entries), *commands[1:]]

    patch.setattr(Turn, "answer", halves)


def restart_from_an_older_version(patch: pytest.MonkeyPatch) -> None:
    """After a restart a task forgets its last round."""
    restore = recovery.restore

    def older(snapshot: Any) -> Any:
        tasks_before = tuple(replace(task, version=max(task.version - 1, 0)) for task in snapshot.tasks)
        return restore(replace(snapshot, tasks=tasks_before))

    patch.setattr(recovery, "restore", older)


def keep_leases_of_the_gone(patch: pytest.MonkeyPatch) -> None:
    """A client that is gone keeps what it held."""
    patch.setattr(fleet, "_suspend_all", lambda *_args: None)


def never_expire(patch: pytest.MonkeyPatch) -> None:
    """A client that makes no progress keeps its lease, and no round is ever given up."""
    patch.setattr(engine, "expire", lambda *_args: None)


def offer_the_same_part_twice(patch: pytest.MonkeyPatch) -> None:
    """A part that waits is offered and goes on waiting."""

    def leaky(turn: Turn, run: Any, step: Any, idle: Any) -> None:
        for client, part in zip(idle, list(step.parts.waiting), strict=False):
            offers.offer(turn, run, client, part)
            step.parts.waiting.append(part)

    patch.setattr(scheduling, "_offer_again", leaky)


def count_repeats(patch: pytest.MonkeyPatch) -> None:
    """A result that comes a second time is delivered a second time."""
    arrived, seen = results.arrived, set()

    def again(turn: Turn, event: Any) -> None:
        lease = turn.farm.leases.get(event.assignment_id)
        arrived(turn, event)
        if lease is not None and lease.stage is Stage.DELIVERED and event.assignment_id in seen:
            step = turn.farm.tasks[lease.record.task_id].step
            if step is not None and lease.home == step.parts.home:
                step.parts.delivered[f"{event.assignment_id} again"] = lease
        seen.add(event.assignment_id)

    _replace_rule(patch, results.arrived, again)


def reuse_fences(patch: pytest.MonkeyPatch) -> None:
    """Fences start anew with each server."""

    given: dict[int, int] = {}

    def from_one(farm: Any, _now: float) -> int:
        given[id(farm)] = given.get(id(farm), 0) + 1
        return given[id(farm)]

    patch.setattr(FarmState, "next_fence", from_one)


def free_a_slot_too_many(patch: pytest.MonkeyPatch) -> None:
    """What a client has not answered yet is not counted."""

    def believe(book: LeaseBook, client_id: str, slots: int) -> None:
        book._clients[client_id].slots = slots

    patch.setattr(LeaseBook, "set_slots", believe)


def never_settle_the_refused(patch: pytest.MonkeyPatch) -> None:
    """A client is not told that nobody wants its result."""
    patch.setattr(results, "settle_uncounted", lambda *_args: None)
    patch.setattr(failures, "settle_uncounted", lambda *_args: None)


def say_nothing(patch: pytest.MonkeyPatch) -> None:
    """A task with an open round does not say what it waits for."""
    patch.setattr(views, "_step_line", lambda *_args: "")


def acknowledge_on_arrival(patch: pytest.MonkeyPatch) -> None:
    """A client forgets its update before a committed round contains it."""
    deliver = results._deliver

    def early(turn: Turn, run: Any, lease: Any, event: Any) -> None:
        deliver(turn, run, lease, event)
        ack = Ack(assignment_id=event.assignment_id, fence=event.fence, counted=True)
        turn.send(turn.farm.clients[event.client_id], ack)

    patch.setattr(results, "_deliver", early)


def undo_too_little(patch: pytest.MonkeyPatch) -> None:
    """A task that falls back to an older checkpoint leaves the books as they are."""
    fall_back = recovery.fall_back
    _replace_rule(patch, fall_back, lambda turn, event: fall_back(turn, replace(event, undone=())))


def credit_on_arrival(patch: pytest.MonkeyPatch) -> None:
    """Work is credited when it comes, whether or not a round counts it."""
    deliver = results._deliver

    def early(turn: Turn, run: Any, lease: Any, event: Any) -> None:
        deliver(turn, run, lease, event)
        if lease.record.kind is Kind.TRAIN:
            turn.credit(entry_of(lease.record))

    patch.setattr(results, "_deliver", early)
    patch.setattr(rounds, "entry_of", lambda record: replace(entry_of(record), assignments=0, samples=0))


def keep_the_credit_of_what_is_undone(patch: pytest.MonkeyPatch) -> None:
    """A task that falls back to an older checkpoint takes no credit back."""
    patch.setattr(recovery, "entry_of", lambda record, _sign: entry_of(record, 0))


def resume_what_is_over(patch: pytest.MonkeyPatch) -> None:
    """People may move tasks along edges that are the farm's own."""
    patch.setattr(tasks, "_check_may", lambda *_args: None)


def _replace_rule(patch: pytest.MonkeyPatch, old: Callable[..., None], new: Callable[..., None]) -> None:
    rules = {event: (new if rule is old else rule) for event, rule in engine.RULES.items()}
    patch.setattr(engine, "RULES", rules)


def forget_what_is_done_ahead(patch: pytest.MonkeyPatch) -> None:
    """A round opens without what clients began ahead of it."""
    patch.setattr(rounds, "take_up", lambda _turn, _run, step: (step.parts.held.clear(), step.parts.delivered.clear()))


def give_samples_out_ahead_and_again(patch: pytest.MonkeyPatch) -> None:
    """Samples that are done ahead are not taken off the epoch."""
    offer = pipelining.offer

    def keep_the_cursor(turn: Turn, run: Any, client: Any, part: Any, home: Any) -> None:
        offer(turn, run, client, part, home)
        run.step.next_cursor -= part.samples

    patch.setattr(pipelining, "offer", keep_the_cursor)


def owe_nothing_that_was_lost_ahead(patch: pytest.MonkeyPatch) -> None:
    """The samples of a part that was given up ahead of its round are nobody's."""
    patch.setattr(offers, "_owe", lambda *_args: None)


def hold_nothing_back(patch: pytest.MonkeyPatch) -> None:
    """The books of a version that is in memory only are saved."""
    patch.setattr(Turn, "_hold_back", lambda *_args: None)


def acknowledge_what_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """Clients hear that their updates are counted by rounds that a crash undoes."""
    aggregated = rounds.round_aggregated

    def early(turn: Turn, event: Any) -> None:
        aggregated(turn, event)
        run = turn.farm.tasks[event.task_id]
        for name, lease in run.leases.committed.items():
            ack = Ack(assignment_id=name, fence=lease.record.fence, counted=True)
            turn.send(turn.farm.clients[lease.record.client_id], ack)

    _replace_rule(patch, aggregated, early)


def roll_nothing_back(patch: pytest.MonkeyPatch) -> None:
    """A task that stops keeps the books of versions that it has no checkpoint of."""
    patch.setattr(tasks, "roll_back", lambda _turn, run, _why: setattr(run, "volatile", None))


def hand_out_the_state_of_the_version_before(patch: pytest.MonkeyPatch) -> None:
    """An assignment names the weights of its version, and the optimizer's state of an earlier one."""
    assign, states = offers._assign, {}

    def stale(turn: Turn, run: TaskRun, client: ClientState, record: AssignmentRecord) -> Assign:
        message = assign(turn, run, client, record)
        before = states.setdefault(run.task_id, message.inner_state)
        states[run.task_id] = message.inner_state
        return message.model_copy(update={"inner_state": before})

    patch.setattr(offers, "_assign", stale)


def roll_back_the_weights_alone(patch: pytest.MonkeyPatch) -> None:
    """A task that stops goes back to the last durable weights, and keeps the optimizer's state of the newest ones."""
    roll_back = tasks.roll_back

    def keep_state(turn: Turn, run: TaskRun, why: str) -> None:
        state = run.checkpoint.inner_state
        roll_back(turn, run, why)
        run.checkpoint = replace(run.checkpoint, inner_state=state)

    patch.setattr(tasks, "roll_back", keep_state)


def acknowledge_more_than_is_durable(patch: pytest.MonkeyPatch) -> None:
    """With each version that is durable all updates are acknowledged, those of later versions too."""
    settle = LeaseBook.settle
    patch.setattr(LeaseBook, "settle", lambda book, leases, upto=None: settle(book, leases))


def count_what_the_crash_loses(patch: pytest.MonkeyPatch) -> None:
    """With each version that is durable the books of all later ones are saved."""
    release = durability.checkpoint_durable

    def early(turn: Turn, event: Any) -> None:
        volatile = turn.farm.tasks[event.task_id].volatile
        release(turn, event)
        for version in volatile.versions if volatile is not None else ():
            turn.release(version.records, version.entries)

    _replace_rule(patch, release, early)


def save_the_newest_books_only(patch: pytest.MonkeyPatch) -> None:
    """What was held back of versions that were never written is lost."""
    reached = durability.Volatile.reached
    patch.setattr(durability.Volatile, "reached", lambda volatile, event: reached(volatile, event)[-1:])


def wait_for_no_disk(patch: pytest.MonkeyPatch) -> None:
    """Memory may be ahead of the disk for ever, and a task is complete before its last version is durable."""
    patch.setattr(verdict, "waits_for_disk", lambda *_args: None)


def part_out_too_little(patch: pytest.MonkeyPatch) -> None:
    """The last client's part lacks a sample."""
    shares = rounds.shares

    def short(*arguments: Any) -> dict[str, int]:
        sizes = shares(*arguments)
        last = next(reversed(sizes))
        return {**sizes, last: max(sizes[last] - 1, 1)}

    patch.setattr(rounds, "shares", short)


def cut_at_the_wrong_place(patch: pytest.MonkeyPatch) -> None:
    """Each client's part begins with the first sample of the round."""
    patch.setattr(rounds, "cut", lambda ranges, sizes: [planning.head_of(ranges, n) for n in sizes])


def plan_the_same_samples_again(patch: pytest.MonkeyPatch) -> None:
    """The cursor of an epoch does not move on."""
    plan = rounds.plan_round
    patch.setattr(rounds, "plan_round", lambda run, n: replace(plan(run, n), next_cursor=run.record.cursor))


def give_work_to_the_busy(patch: pytest.MonkeyPatch) -> None:
    """A client gets a part without having a slot for it."""
    offer = offers.offer

    def crowd(turn: Turn, run: Any, client: Any, *more: Any) -> None:
        client.slots += 1
        offer(turn, run, client, *more)

    patch.setattr(rounds, "offer", crowd)


def open_a_round_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """What was lost is offered to nobody any more."""
    patch.setattr(scheduling, "_offer_again", lambda *_args: None)


def answer_half(patch: pytest.MonkeyPatch) -> None:
    """The answer of a turn lacks its last command."""
    answer = Turn.answer

    def short(turn: Turn) -> list[Any]:
        commands = answer(turn)
        return commands[:-1] if len(commands) > 3 else commands

    patch.setattr(Turn, "answer", short)


def settle_nothing(patch: pytest.MonkeyPatch) -> None:
    """Assignments are forgotten while clients work on them."""
    keep = LeaseBook.keep

    def forgetful(book: LeaseBook, records: Any) -> None:
        keep(book, records)
        book._by_id.clear()

    patch.setattr(LeaseBook, "keep", forgetful)


def leave_what_is_held_waiting(patch: pytest.MonkeyPatch) -> None:
    """A part that a client was given, or has again, waits for another one all the same."""
    patch.setattr(LeaseBook, "_stop_waiting", lambda *_args: None)


def take_no_slot(patch: pytest.MonkeyPatch) -> None:
    """A client that got a part has as many free slots as before."""
    grant = LeaseBook.grant

    def free(book: LeaseBook, lease: Lease) -> None:
        grant(book, lease)
        book.add_slots(lease.record.client_id, 1)

    patch.setattr(LeaseBook, "grant", free)


def leave_it_with_its_client(patch: pytest.MonkeyPatch) -> None:
    """A client goes on to hold what it delivered or lost."""
    take = LeaseBook._take

    def half(book: LeaseBook, parts: Any, lease: Lease, now: float) -> Any:
        client = take(book, parts, lease, now)
        client.held[lease.assignment_id] = lease
        return client

    patch.setattr(LeaseBook, "_take", half)


def forget_who_may_finish(patch: pytest.MonkeyPatch) -> None:
    """A round that commits forgets those who may finish after it."""
    patch.setattr(LeaseBook, "let_finish", lambda _book, parts: parts.held.clear())


def leave_the_late_at_home(patch: pytest.MonkeyPatch) -> None:
    """What missed its round still has that round as its home."""

    def stay(book: LeaseBook, parts: Any) -> None:
        for name, lease in parts.held.items():
            book._leases(lease).late.held[name] = lease
        parts.held.clear()

    patch.setattr(LeaseBook, "let_finish", stay)


def bury_nobody(patch: pytest.MonkeyPatch) -> None:
    """A dormant assignment may still come although its part is delivered."""
    patch.setattr(results, "bury", lambda *_args: None)


def know_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    """An assignment that came to nothing can still be found."""
    patch.setattr(LeaseBook, "_forget", lambda *_args: None)


def keep_what_is_durable(patch: pytest.MonkeyPatch) -> None:
    """What a durable version contains stays in flight."""
    patch.setattr(LeaseBook, "settle", lambda *_args, **_more: [])


def settle_again_and_again(patch: pytest.MonkeyPatch) -> None:
    """What a durable commit settled is not durable yet."""
    patch.setattr(LeaseBook, "settle", lambda _book, leases, upto=None: list(leases.committed.values()))


def keep_the_folded(patch: pytest.MonkeyPatch) -> None:
    """An update that was folded waits for its fold."""
    fold = LeaseBook.fold

    def twice(book: LeaseBook, parts: Any, position: int) -> Any:
        lease, update = fold(book, parts, position)
        lease.update = update
        return lease, update

    patch.setattr(LeaseBook, "fold", twice)


def place_at_the_old_position(patch: pytest.MonkeyPatch) -> None:
    """What was done ahead of a round keeps the position that it had before."""
    place = LeaseBook.place

    def stay(book: LeaseBook, lease: Lease, record: AssignmentRecord, scale: float) -> None:
        place(book, lease, replace(record, position=lease.record.position), scale)

    patch.setattr(LeaseBook, "place", stay)


def join_no_round(patch: pytest.MonkeyPatch) -> None:
    """A late result lies with a round and is still late."""
    join = LeaseBook.join

    def homeless(book: LeaseBook, lease: Lease, *more: Any) -> None:
        join(book, lease, *more)
        lease.home = None

    patch.setattr(LeaseBook, "join", homeless)


def adopt_and_forget(patch: pytest.MonkeyPatch) -> None:
    """A client that came back with an assignment may come back with it again."""
    adopt = LeaseBook.adopt

    def twice(book: LeaseBook, lease: Lease) -> None:
        adopt(book, lease)
        book._clients[lease.record.client_id].dormant[lease.assignment_id] = lease

    patch.setattr(LeaseBook, "adopt", twice)


def restore_as_held(patch: pytest.MonkeyPatch) -> None:
    """After a restart the farm believes that its clients still hold everything."""
    restore = LeaseBook.restore

    def held(book: LeaseBook, lease: Lease) -> None:
        restore(book, lease)
        lease.stage = Stage.HELD

    patch.setattr(LeaseBook, "restore", held)


def say_that_the_dropped_counts(patch: pytest.MonkeyPatch) -> None:
    """A client hears that a result counts which was given up."""
    send = Turn.send

    def lie(turn: Turn, client: Any, message: Any, **more: Any) -> None:
        said = message.model_copy(update={"counted": True}) if isinstance(message, Ack) else message
        send(turn, client, said, **more)

    patch.setattr(Turn, "send", lie)


def answer_the_connection_before(patch: pytest.MonkeyPatch) -> None:
    """Messages go to a connection that has ended."""
    send = Turn.send

    def stale(turn: Turn, client: Any, message: Any, **more: Any) -> None:
        if client.incarnation == 1:
            send(turn, client, message, **more)
        elif client.online:
            turn.do(Send(client.client_id, client.incarnation - 1, message))

    patch.setattr(Turn, "send", stale)


def save_last(patch: pytest.MonkeyPatch) -> None:
    """What an answer saves comes after what it says."""
    answer = Turn.answer
    patch.setattr(Turn, "answer", lambda turn: answer(turn)[::-1])


def tell_nobody_that_it_counts(patch: pytest.MonkeyPatch) -> None:
    """Clients do not hear of the commit that contains their updates."""
    send = Turn.send

    def mute(turn: Turn, client: Any, message: Any, **more: Any) -> None:
        if not (isinstance(message, Ack) and message.counted):
            send(turn, client, message, **more)

    patch.setattr(Turn, "send", mute)


def stop_nobody(patch: pytest.MonkeyPatch) -> None:
    """A client is not told that its part was given up."""
    send = Turn.send

    def mute(turn: Turn, client: Any, message: Any, **more: Any) -> None:
        if not isinstance(message, Cancel):
            send(turn, client, message, **more)

    patch.setattr(Turn, "send", mute)


def discard_and_keep(patch: pytest.MonkeyPatch) -> None:
    """The updates of a round that is given up lie on the disk for ever."""
    do = Turn.do
    patch.setattr(Turn, "do", lambda turn, command: None if isinstance(command, DropUpdate) else do(turn, command))


def lose_what_is_owed(patch: pytest.MonkeyPatch) -> None:
    """The next round does not contain what earlier ones owe."""
    patch.setattr(round_plan, "available_leftover", lambda _run: ())


def train_what_somebody_is_late_with(patch: pytest.MonkeyPatch) -> None:
    """Samples that a late client works on are given to others."""
    patch.setattr(round_plan, "available_leftover", lambda run: run.record.leftover)


def complete_before_the_end(patch: pytest.MonkeyPatch) -> None:
    """A task is complete before its last round."""
    finished = verdict.is_finished
    patch.setattr(
        verdict, "is_finished", lambda task: finished(replace(task, version=task.version + 1, cursor=task.cursor + 9))
    )


def take_up_what_others_do(patch: pytest.MonkeyPatch) -> None:
    """A client that comes back goes on with its part although another one has it."""
    patch.setattr(in_flight.StepParts, "is_waiting", lambda *_args: True)
    patch.setattr(offers, "cancel", lambda *_args: None)


def report_with_parts_missing(patch: pytest.MonkeyPatch) -> None:
    """An evaluation is over as soon as a part of it arrived."""
    patch.setattr(policies.Evaluation, "when_arrived", lambda *_args: policies.Follows.REPORT)


def wait_for_all_and_more(patch: pytest.MonkeyPatch) -> None:
    """A round is not complete with all of its parts."""
    patch.setattr(policies.Synchronous, "when_arrived", lambda *_args: None)
    patch.setattr(policies.Synchronous, "at_longest_time", lambda *_args: policies.Follows.FAIL)


def commit_too_early(patch: pytest.MonkeyPatch) -> None:
    """A round commits with its first part, and owes what is missing to nobody."""
    patch.setattr(policies.Synchronous, "when_arrived", lambda *_args: policies.Follows.COMMIT)
    patch.setattr(rounds, "_owed_after", lambda *_args: ())


def evict_with_a_lease_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A task ends and leaves the memory while a client works on a late part of it."""
    patch.setattr(tasks, "drop_all_late", lambda *_args: None)
    patch.setattr(TaskRun, "is_at_rest", property(lambda run: run.record.state in ENDED))
    patch.setattr(LeaseBook, "close_task", lambda book, task_id: book._of_tasks.pop(task_id))


def evict_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    """A task leaves the memory in the turn in which it ends."""

    def at_once(turn: Turn) -> None:
        for run in [run for run in turn.touched.values() if run.is_at_rest]:
            turn.farm.evict(run)

    patch.setattr(tasks, "confirm_ends", at_once)


def keep_in_memory_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether an end is durable."""
    patch.setattr(tasks, "confirm_ends", lambda _turn: None)


def come_back_without_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """A task that is retried begins with its initial weights."""
    recall = tasks.recall
    patch.setattr(tasks, "recall", lambda turn, event: recall(turn, replace(event, checkpoint=None)))


def count_in_the_round_after(patch: pytest.MonkeyPatch) -> None:
    """Every third part's record names the round after the one that counted it: a sum of all does not show it."""
    save = Turn.save

    def later(turn: Turn, record: Any) -> None:
        if isinstance(record, AssignmentRecord) and record.counted_in is not None and record.fence % 3 == 0:
            record = replace(record, counted_in=record.counted_in + 1)
        save(turn, record)

    patch.setattr(Turn, "save", later)


def stop_before_the_time_is_up(patch: pytest.MonkeyPatch) -> None:
    """A budget of seconds is over with the first commit."""
    patch.setattr(rounds, "out_of_time", lambda task, now: early_stopping.out_of_time(task, now + 1e9))


def be_patient_for_ever(patch: pytest.MonkeyPatch) -> None:
    """No evaluation is ever no better."""
    patch.setattr(early_stopping, "_no_better", lambda _task: None)


def never_reach_a_target(patch: pytest.MonkeyPatch) -> None:
    """No target is ever reached."""
    patch.setattr(early_stopping, "_reached", lambda _task: None)


def ask_an_owner_again(patch: pytest.MonkeyPatch) -> None:
    """A client is offered what its owner refused."""
    may_try = eligibility._may_try

    def forgetful(client: ClientState, run: TaskRun, now: float) -> Any:
        client.refuses.clear()
        return may_try(client, run, now)

    patch.setattr(eligibility, "_may_try", forgetful)


def take_any_sandbox(patch: pytest.MonkeyPatch) -> None:
    """A task goes to clients that do not shut it in as it asks."""
    patch.setattr(eligibility, "is_shut_in", lambda *_args: True)


def take_a_sandbox_at_its_word(patch: pytest.MonkeyPatch) -> None:
    """A rung counts that no escape probe was run on."""
    patch.setattr(eligibility, "proven_rung", lambda sandbox: Rung.NONE if sandbox is None else sandbox.rung)


def ask_for_one_sandbox(patch: pytest.MonkeyPatch) -> None:
    """Tasks that ask for different sandboxes share the clients that the first of them found."""
    need = pools._need

    def coarse(spec: TaskSpec) -> Any:
        requirements = spec.requirements.model_copy(update={"sandbox": None})
        return need(spec.model_copy(update={"requirements": requirements}))

    patch.setattr(pools, "_need", coarse)


OWNER_MUTANTS: tuple[Mutant, ...] = (
    ask_an_owner_again,
    take_any_sandbox,
    take_a_sandbox_at_its_word,
    ask_for_one_sandbox,
)
"""What machines with sandboxes and owners show."""


def show_each_epoch_twice(patch: pytest.MonkeyPatch) -> None:
    """The first client that is done with an epoch's end is forgotten, and another one is given it again."""
    finish, shown = step_ends.finish_epoch_end, set[tuple[str, int]]()

    def again(turn: Turn, run: TaskRun, step: Step) -> None:
        epochs_ended = run.record.epochs_ended
        finish(turn, run, step)
        if (run.task_id, run.record.epoch) not in shown:
            shown.add((run.task_id, run.record.epoch))
            turn.save(run.update(epochs_ended=epochs_ended))

    patch.setattr(step_ends, "finish_epoch_end", again)


def leave_the_first_epoch_out(patch: pytest.MonkeyPatch) -> None:
    """The code is not shown the end of the first epoch."""
    due = state.epoch_end_is_due
    patch.setattr(state, "epoch_end_is_due", lambda task: due(task) and task.epoch > 1)


def hand_the_same_samples_out_again(patch: pytest.MonkeyPatch) -> None:
    """Every fifth part that is handed out leaves the cursor where it was."""
    take, taken = handing_out._take, [0]

    def forgetful(turn: Turn, run: TaskRun, step: Step, wanted: int) -> Any:
        cursor = step.next_cursor
        ranges = take(turn, run, step, wanted)
        taken[0] += 1
        if taken[0] % 5 == 0:
            step.next_cursor = cursor
        return ranges

    patch.setattr(handing_out, "_take", forgetful)


def owe_what_is_handed_out_again(patch: pytest.MonkeyPatch) -> None:
    """What a late client gave up is handed out, and the next round owes it, too."""
    owe = offers._owe

    def twice(run: TaskRun, lease: Lease) -> None:
        late = () if run.step is None else run.step.late_at_open
        owe(run, lease)
        if run.step is not None:
            run.step.late_at_open = late

    patch.setattr(offers, "_owe", twice)


def give_all_the_same_place(patch: pytest.MonkeyPatch) -> None:
    """A round does not grow by what it hands out."""
    patch.setattr(LeaseBook, "extend", lambda _book, parts, _samples: parts.samples)


def count_the_stalest(patch: pytest.MonkeyPatch) -> None:
    """No update is too stale."""
    patch.setattr(rounds, "drop_stale", lambda *_args: None)


def wait_for_nobody_at_all(patch: pytest.MonkeyPatch) -> None:
    """At the epoch's end what is late is not waited for, and not owed."""
    patch.setattr(rounds, "outstanding", lambda _run: ())


def give_each_part_a_vote(patch: pytest.MonkeyPatch) -> None:
    """A client that did two parts of a round has two votes."""

    def of_nobody(task: str, number: int, attempt: int, assignment: str, _client: str, *rest: Any) -> Fold:
        return Fold(task, number, attempt, assignment, assignment, *rest)

    patch.setattr(rounds, "Fold", of_nobody)


def cut_across_virtual_clients(patch: pytest.MonkeyPatch) -> None:
    """A round's parts are as large as each other, whoever's rows they are."""
    patch.setattr(rounds, "sizes_of_parts", lambda ranges, spec, kind: fixed_parts(ranges, spec.recipe, kind))


def say_that_it_is_another_clients(patch: pytest.MonkeyPatch) -> None:
    """A part's control variate is that of the first virtual client."""
    part_of, first = offers._data_part, 0
    patch.setattr(offers, "_data_part", lambda run, record: None if part_of(run, record) is None else first)


DISTANCE_MUTANTS: tuple[Mutant, ...] = (give_each_part_a_vote,)
"""What robust aggregates by distances or norms show."""
SPLIT_MUTANTS: tuple[Mutant, ...] = (cut_across_virtual_clients, say_that_it_is_another_clients)
"""What tasks show whose rows are dealt to virtual clients."""
ASYNCHRONOUS_MUTANTS: tuple[Mutant, ...] = (
    hand_the_same_samples_out_again,
    owe_what_is_handed_out_again,
    give_all_the_same_place,
    count_the_stalest,
    wait_for_nobody_at_all,
)
"""What tasks show whose clients wait for nobody."""
EPOCH_END_MUTANTS: tuple[Mutant, ...] = (show_each_epoch_twice, leave_the_first_epoch_out)
"""What tasks with an ``on_epoch_end`` show."""
EARLY_MUTANTS: tuple[Mutant, ...] = (stop_before_the_time_is_up, be_patient_for_ever, never_reach_a_target)
"""What tasks that may stop early show."""
ROBUST_MUTANTS: tuple[Mutant, ...] = (count_in_the_round_after,)
"""What robust aggregates show: which updates one round counted together."""
MUTANTS: tuple[Mutant, ...] = (
    evict_with_a_lease_in_flight,
    evict_before_it_is_durable,
    keep_in_memory_what_has_ended,
    come_back_without_the_checkpoint,
    part_out_too_little,
    cut_at_the_wrong_place,
    plan_the_same_samples_again,
    give_work_to_the_busy,
    credit_on_arrival,
    keep_the_credit_of_what_is_undone,
    open_a_round_for_nobody,
    answer_half,
    settle_nothing,
    fold_twice,
    fold_in_order_of_arrival,
    lose_parts,
    forget_the_leftover,
    skip_the_journal,
    count_before_the_commit,
    save_half_a_commit,
    restart_from_an_older_version,
    keep_leases_of_the_gone,
    never_expire,
    offer_the_same_part_twice,
    count_repeats,
    reuse_fences,
    free_a_slot_too_many,
    never_settle_the_refused,
    say_nothing,
    acknowledge_on_arrival,
    undo_too_little,
    resume_what_is_over,
    forget_what_is_done_ahead,
    give_samples_out_ahead_and_again,
    owe_nothing_that_was_lost_ahead,
    hold_nothing_back,
    acknowledge_what_is_not_durable,
    acknowledge_more_than_is_durable,
    count_what_the_crash_loses,
    save_the_newest_books_only,
    wait_for_no_disk,
    roll_nothing_back,
    hand_out_the_state_of_the_version_before,
    roll_back_the_weights_alone,
    leave_what_is_held_waiting,
    take_no_slot,
    leave_it_with_its_client,
    forget_who_may_finish,
    leave_the_late_at_home,
    bury_nobody,
    know_what_has_ended,
    keep_what_is_durable,
    settle_again_and_again,
    keep_the_folded,
    place_at_the_old_position,
    join_no_round,
    adopt_and_forget,
    restore_as_held,
    say_that_the_dropped_counts,
    answer_the_connection_before,
    save_last,
    tell_nobody_that_it_counts,
    stop_nobody,
    discard_and_keep,
    lose_what_is_owed,
    train_what_somebody_is_late_with,
    complete_before_the_end,
    take_up_what_others_do,
    report_with_parts_missing,
    wait_for_all_and_more,
    commit_too_early,
)
