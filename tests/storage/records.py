"""Records to save: one plain example of each kind, and hypothesis strategies for all that they may hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    ClientRecord,
    CreditEntry,
    EventRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    RoundRecord,
    RoundState,
    SampleRange,
    TaskRecord,
)
from protocol.assignments import Kind
from protocol.bounds import MAX_BYTES
from protocol.digests import digest_bytes
from protocol.recipe import Mode, OuterOptimizer, ParameterGroup, Recipe, Requirements
from protocol.resources import Gpu, Resources
from protocol.sandbox import Rung, Sandbox
from protocol.tasks import BlobRef, Dataset, Footprint, Shard, Split, TaskSpec


def ref(name: str) -> BlobRef:
    return BlobRef(digest=digest_bytes(name.encode()), size_bytes=len(name))


def spec(name: str = "digits", **changes: Any) -> TaskSpec:
    shards = (
        Shard(index=0, samples=60, blob=ref(f"{name}/shard0")),
        Shard(index=1, samples=40, blob=ref(f"{name}/shard1")),
    )
    values: dict[str, Any] = {
        "name": name,
        "code": ref(f"{name}/code"),
        "initial_weights": ref(f"{name}/initial"),
        "dataset": Dataset(kind="files", shards=shards),
        "recipe": Recipe(rounds=3),
    }
    return TaskSpec(**values | changes)


def task(task_id: str = "t1", **changes: Any) -> TaskRecord:
    values: dict[str, Any] = {"task_id": task_id, "state": TaskState.RUNNING, "created_at": 1.5}
    token = changes.pop("submit_token", None)
    return TaskRecord(**values | {"spec": spec(task_id, submit_token=token)} | changes)


def client(client_id: str = "c1", **changes: Any) -> ClientRecord:
    values: dict[str, Any] = {"name": "box", "secret_hash": "h", "first_seen": 1.0, "last_seen": 2.0}
    return ClientRecord(client_id, **values | changes)


def failed_step(task_id: str = "t1", line: str = "t.py:3, in loss") -> FailedStepRecord:
    return FailedStepRecord(task_id, line, digest_bytes(f"{task_id}/{line}".encode()), 30)


def artefact(task_id: str = "t1", epoch: int = 0, name: str = "a.png", size_bytes: int = 20) -> ArtefactRecord:
    return ArtefactRecord(task_id, epoch, name, digest_bytes(f"{task_id}/{epoch}/{name}".encode()), size_bytes)


def round_(task_id: str = "t1", number: int = 0, **changes: Any) -> RoundRecord:
    values: dict[str, Any] = {
        "state": RoundState.OPEN, "attempt": 1, "epoch": 0, "cursor": 0, "samples": 100, "opened_at": 3.0,
    }  # fmt: skip
    return RoundRecord(task_id, number, **values | changes)


def assignment(assignment_id: str = "a1", task_id: str = "t1", **changes: Any) -> AssignmentRecord:
    values: dict[str, Any] = {
        "round": 0, "attempt": 1, "kind": Kind.TRAIN, "epoch": 0, "client_id": "c1", "incarnation": 1, "fence": 1,
        "state": AssignmentState.RUNNING, "ranges": (SampleRange(0, 0, 60),), "position": 0, "samples": 60,
        "offered_at": 4.0, "expires_at": 9.0,
    }  # fmt: skip
    return AssignmentRecord(assignment_id, task_id, **values | changes)


def checkpoint(task_id: str = "t1", round: int = 1, **changes: Any) -> CheckpointRecord:  # noqa: A002
    name = f"{task_id}/{round}"
    values: dict[str, Any] = {
        "epoch": 0, "cursor": 0, "weights": ref(f"{name}/weights"), "optimizer": ref(f"{name}/optimizer"),
        "manifest": ref(f"{name}/manifest"), "created_at": 5.0,
    }  # fmt: skip
    return CheckpointRecord(task_id, round, **values | changes)


def event(message: str = "it happened", task_id: str | None = "t1") -> EventRecord:
    return EventRecord(at=6.0, kind="task.opened", message=message, task_id=task_id)


def log(text: str = "hello", task_id: str = "t1") -> LogRecord:
    return LogRecord(7.0, task_id, "c1", "box", 0, "stdout", text)


def credit(client_id: str = "c1", team: str = "", task_id: str = "t1", day: int = 0, **changes: Any) -> CreditEntry:
    values: dict[str, Any] = {"assignments": 1, "samples": 60, "measured_samples": 0, "gigaflops": 0, "flops": 0}
    return CreditEntry(task_id, client_id, team, day, **values | changes)


def metric(value: float = 0.5, task_id: str = "t1") -> MetricRecord:
    return MetricRecord(8.0, task_id, 0, 1, "loss", value, "train")


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_names = _words.filter(bool)
_floats = st.floats(allow_nan=False)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_whole = st.integers(0, 2**63 - 1)
_sizes = st.integers(0, MAX_BYTES)
_refs = st.builds(BlobRef, digest=st.text("0123456789abcdef", min_size=64, max_size=64), size_bytes=_sizes)
_ranges = st.lists(st.builds(SampleRange, _whole, _whole, _whole), max_size=3).map(tuple)
_metrics = st.dictionaries(_texts, _floats, max_size=3)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _finite | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_maps = st.dictionaries(_texts, _json, max_size=3)
_options = st.dictionaries(
    st.sampled_from(["lr", "momentum", "betas", "nesterov"]),
    _finite | st.integers(-5, 5) | st.booleans() | st.tuples(_finite, _finite) | st.none(),
)
_groups = st.lists(
    st.builds(ParameterGroup, names=st.lists(_texts, max_size=2).map(tuple), options=_options), max_size=2
)
_outer = st.builds(
    OuterOptimizer, name=st.sampled_from(["sgd", "adam", "adamw"]), options=_options, groups=_groups.map(tuple)
)
_recipes = st.builds(
    Recipe, mode=st.sampled_from(Mode), rounds=st.integers(1, 99), epochs=st.none() | st.floats(0.1, 9), outer=_outer
)
_resources = st.builds(
    Resources,
    hostname=_texts,
    ram_bytes=_sizes,
    gpus=st.lists(
        st.builds(Gpu, index=st.integers(0, 9), name=_texts, memory_bytes=_sizes, memory_free_bytes=_sizes), max_size=2
    ).map(tuple),
)
_sandboxes = st.builds(Sandbox, rung=st.sampled_from(Rung), probes=_whole)


@st.composite
def _datasets(draw: st.DrawFn) -> Dataset:
    count = draw(st.integers(1, 3))
    shards = [
        Shard(
            index=index,
            samples=draw(st.integers(1, 10**9)),
            start=draw(st.integers(0, 10**9)),
            blob=draw(_refs),
            split=Split.TRAIN if index == 0 else draw(st.sampled_from(Split)),
        )
        for index in range(count)
    ]
    return Dataset(kind="files", shards=tuple(shards))


_specs = st.builds(
    TaskSpec,
    name=_names,
    submitter=_names,
    code=_refs,
    entry=_names,
    config=_maps,
    dataset=_datasets(),
    initial_weights=_refs,
    recipe=_recipes,
    requirements=st.builds(
        Requirements, tags=st.lists(_words, max_size=2).map(tuple), sandbox=st.none() | st.sampled_from(Rung)
    ),
    footprint=st.builds(Footprint, weights_bytes=_sizes),
    submit_token=st.none() | st.uuids().map(str),
)
_task_ids = st.uuids().map(str)

TASKS = st.builds(
    TaskRecord, _task_ids, _specs, st.sampled_from(TaskState), _floats, _texts, st.none() | _texts, _whole, _whole,
    _whole, _ranges, _whole, _floats, _floats, st.none() | _floats, st.none() | _floats, _whole,
    st.none() | _floats, _metrics,
)  # fmt: skip
CLIENTS = st.builds(
    ClientRecord, _task_ids, _texts, _texts, _floats, _floats, _whole, _resources,
    st.lists(_texts, max_size=3).map(tuple), _whole, _whole, st.none() | _sandboxes,
)  # fmt: skip
ROUNDS = st.builds(
    RoundRecord, _task_ids, _whole, st.sampled_from(RoundState), _whole, _whole, _whole, _whole, _floats, _whole,
    st.none() | _floats, st.none() | _floats, _metrics,
)  # fmt: skip
ASSIGNMENTS = st.builds(
    AssignmentRecord, _task_ids, _task_ids, _whole, _whole, st.sampled_from(Kind), _whole, _texts, _whole, _whole,
    st.sampled_from(AssignmentState), _ranges, _whole, _whole, _floats, _floats, st.none() | _floats, st.booleans(),
    st.none() | _whole, st.none() | _refs, _metrics, st.none() | _texts,
)  # fmt: skip
CHECKPOINTS = st.builds(
    CheckpointRecord, _task_ids, _whole, _whole, _whole, _refs, st.none() | _refs, st.none() | _refs, _floats,
    _metrics, _ranges, st.none() | _refs,
)  # fmt: skip
EVENTS = st.builds(
    EventRecord, _floats, _texts, _texts, _task_ids, st.none() | _texts, st.none() | _whole, _maps
)  # fmt: skip
METRICS = st.builds(MetricRecord, _floats, _task_ids, _whole, _whole, _texts, _floats, _texts, st.none() | _texts)
LOGS = st.builds(LogRecord, _floats, _task_ids, _texts, _texts, _whole, _texts, _texts)
