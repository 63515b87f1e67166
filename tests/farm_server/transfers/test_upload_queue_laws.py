"""Laws of the queue for uploads, whoever asks, sends, falls silent or comes back, in whatever order."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from farm_server.transfers.upload_queue import UploadQueue

CAPACITY, IDLE, FORGET = 2, 10.0, 15.0
CLIENTS = ("ada", "bob", "eve")
uploads = st.tuples(st.sampled_from(CLIENTS), st.integers(0, 3)).map(lambda pair: f"{pair[0]}/{pair[1]}")


def owner(upload: str) -> str:
    return upload.partition("/")[0]


class Queue(RuleBasedStateMachine):
    """The queue beside a model of it: who was granted and when it last moved, who waits and when it last asked."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = UploadQueue(CAPACITY, IDLE, FORGET)
        self.now = 0.0
        self.held: dict[str, float] = {}
        self.waits: dict[str, float] = {}

    @rule(upload=uploads)
    def ask(self, upload: str) -> None:
        self._let_expire()
        had, first = upload in self.held, self._first_of_queue(upload)
        turn = self.queue.ask(upload, owner(upload), self.now).value
        if had:
            assert turn.granted, "who holds a credit keeps it"
        elif len(self.held) < CAPACITY and (upload in first):
            assert turn.granted, f"a credit is free, and {first} are first"
        else:
            assert not turn.granted
            assert turn.ahead >= len(self.held), "all that are under way are before it"
            assert turn.retry_seconds > 0
        if turn.granted:
            self.waits.pop(upload, None)
        (self.held if turn.granted else self.waits)[upload] = self.now

    def _first_of_queue(self, asking: str) -> list[str]:
        """Those that a free credit goes to: in turns between clients, and among these in the order of coming."""
        turns = Counter(owner(one) for one in self.held)
        ranked = []
        waiting = [*self.waits, *([] if asking in self.waits else [asking])]
        for upload in waiting:
            ranked.append((turns[owner(upload)], upload))
            turns[owner(upload)] += 1
        free = CAPACITY - len(self.held)
        return [upload for _, upload in sorted(ranked, key=lambda pair: pair[0])[: max(free, 0)]]

    @rule(upload=uploads, size=st.integers(0, 1000))
    def send(self, upload: str, size: int) -> None:
        assert self.queue.progress(upload, self.now, size) is (upload in self.held)
        if upload in self.held:
            self.held[upload] = self.now

    @rule(upload=uploads)
    def release(self, upload: str) -> None:
        self.queue.release(upload)
        self._end(upload)

    def _end(self, upload: str) -> None:
        """Forget an upload; if it held a credit, whatever else its client brings goes to the end of the queue."""
        self.waits.pop(upload, None)
        if self.held.pop(upload, None) is not None:
            self.waits = dict(sorted(self.waits.items(), key=lambda pair: owner(pair[0]) == owner(upload)))

    @rule(seconds=st.sampled_from((0.5, 4.0, 9.0, 16.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        """Whoever asks sees to it too."""
        self.queue.expire(self.now)
        self._let_expire()

    @rule(seconds=st.sampled_from((1.0, 20.0)))
    def be_deaf(self, seconds: float) -> None:
        """The server could hear nobody for so long: that is nobody's silence."""
        self.now += seconds
        self.queue.forgive(seconds, self.now)
        for books in (self.held, self.waits):
            for upload in books:
                books[upload] = min(books[upload] + seconds, self.now)

    def _let_expire(self) -> None:
        for upload in [one for one, at in self.held.items() if self.now - at > IDLE]:
            self._end(upload)
        self.waits = {one: at for one, at in self.waits.items() if self.now - at <= FORGET}

    @invariant()
    def it_agrees_with_the_model(self) -> None:
        assert set(self.queue.held()) == set(self.held)
        assert len(self.held) <= CAPACITY
        waiting = self.queue.waiting()
        assert {one.upload for one in waiting} == set(self.waits)
        assert [one.ahead for one in waiting] == list(range(len(self.held), len(self.held) + len(waiting)))
        assert all(one.clients == (owner(one.upload),) for one in waiting)


Queue.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_a_queue_of_uploads_is_its_model = Queue.TestCase


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), many=st.integers(2, 12))
def test_who_brings_much_gets_no_more_turns_than_who_always_has_one(seed: int, many: int) -> None:
    """All ask again and again; whichever upload is under way ends at random, and its owner brings the next one."""
    rng, queue = Random(seed), UploadQueue(1, IDLE, FORGET)
    waiting = {client: [f"{client}/{n}" for n in range(many if client == "ada" else 1)] for client in CLIENTS}
    granted: Counter[str] = Counter()
    for step in range(60):
        asking = [upload for mine in waiting.values() for upload in mine]
        rng.shuffle(asking)
        for upload in asking:
            if queue.ask(upload, owner(upload), step / 100).value.granted and upload not in granted:
                granted[upload] += 1
        (under_way,) = queue.held()
        queue.release(under_way)
        client = owner(under_way)
        waiting[client] = [one for one in waiting[client] if one != under_way] + [f"{client}/next {step}"]
    turns = Counter(owner(upload) for upload in granted)
    assert max(turns.values()) - min(turns.values()) <= 2, turns


@given(sharers=st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=6))
def test_who_sends_the_same_blob_shares_its_credit_and_is_named_once(sharers: list[str]) -> None:
    queue = UploadQueue(1, IDLE, FORGET)
    for client in sharers:
        assert queue.ask("blob", client, 0.0).value.granted
    assert queue.held() == ("blob",)
    assert queue.clients_of("blob") == tuple(dict.fromkeys(sharers))


def test_the_first_asks_again_soon_and_none_is_told_to_wait_beyond_being_forgotten() -> None:
    queue = UploadQueue(1, IDLE)
    waits = [queue.ask(f"u{n}", f"c{n}", 0.0).value.retry_seconds for n in range(200)]
    assert waits[0] == 0.0
    assert waits[1] == 0.2
    assert waits[2] == 0.4
    assert waits == sorted(waits)
    assert max(waits) * 2 < 15.0, "who misses one question keeps the place"


def test_a_trickle_loses_its_credit_only_where_others_wait() -> None:
    def trickle(others_wait: bool) -> bool:
        queue = UploadQueue(1, IDLE, 1e9, least_bytes_per_second=100)
        queue.ask("slow", "ada", 0.0)
        if others_wait:
            queue.ask("next", "bob", 0.0)
        for second in range(1, 60):
            if not queue.progress("slow", float(second), 10):
                return False
            queue.expire(float(second))
        return True

    assert trickle(others_wait=False)
    assert not trickle(others_wait=True)
