"""Between the coordinator's records and the ledger's rows, field by field.

A field is kept in the column of its name, unless a mapper says otherwise: a ``Codec`` for what SQL has no type for,
and two columns (``x_digest``, ``x_bytes``) for a reference to a blob. Bytes that ride inside a reference
(``BlobRef.carried``) are not kept: the blob store has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy import RowMapping
from sqlmodel import SQLModel

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    ClientRecord,
    CreditEntry,
    Entry,
    EventRecord,
    FailedItemRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    OutputRecord,
    Record,
    RoundRecord,
    RoundState,
    SampleRange,
    TaskRecord,
)
from protocol.assignments import Kind
from protocol.resources import Resources
from protocol.sandbox import Sandbox
from protocol.tasks import BlobRef, TaskSpec
from storage import tables
from storage.old_specs import given_up, without_refused_fields

R = TypeVar("R", bound=Record | Entry)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ColumnCodec:
    """How one field is kept: what its column is given, and what is made of the column's value.

    ``empty`` is what an empty field's column is given, where fields may be empty.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    empty: list[Any] | dict[str, Any] | None = None


def _ranges_to_lists(ranges: Iterable[SampleRange]) -> list[list[int]]:
    return [[r.shard, r.start, r.stop] for r in ranges]


def _ranges_from_lists(lists: Iterable[list[int]]) -> tuple[SampleRange, ...]:
    return tuple(SampleRange(*numbers) for numbers in lists)


_RANGES: Final = ColumnCodec(_ranges_to_lists, _ranges_from_lists, empty=[])
_MAP: Final = ColumnCodec(dict, dict, empty={})
_TEXTS: Final = ColumnCodec(list, tuple, empty=[])


def _resources_from_map(told: dict[str, Any]) -> Resources:
    """Read what a client once sent; it sends it anew when it joins. An older version took what this one refuses."""
    try:
        return Resources.model_validate(told)
    except ValidationError:
        return Resources()


_RESOURCES: Final = ColumnCodec(lambda resources: resources.model_dump(), _resources_from_map)
_SANDBOX: Final = ColumnCodec(
    lambda sandbox: sandbox.model_dump(), lambda told: Sandbox.model_validate(told) if told else None, empty={}
)
_NUMBER: Final = ColumnCodec(
    lambda value: None if math.isnan(value) else value, lambda value: math.nan if value is None else value
)


def _enum(kind: type[TaskState | AssignmentState | RoundState | Kind]) -> ColumnCodec:
    return ColumnCodec(str, kind)


class Mapper(Generic[R]):
    """One kind of record and its table.

    ``elsewhere`` are fields that other tables keep, ``derived`` columns that exist to be searched by.
    """

    def __init__(
        self,
        record: type[R],
        row: type[SQLModel],
        codecs: Mapping[str, ColumnCodec] | None = None,
        *,
        blobs: tuple[str, ...] = (),
        elsewhere: tuple[str, ...] = (),
        derived: Mapping[str, Callable[[R], Any]] | None = None,
    ) -> None:
        self.record_type = record
        self.table = tables.table_of(row)
        self.codecs = dict(codecs or {})
        self.blobs = tuple((name, f"{name}_digest", f"{name}_bytes") for name in blobs)
        self.derived = dict(derived or {})
        special = {*self.codecs, *blobs, *elsewhere}
        self.plain = tuple(f.name for f in fields(record) if f.name not in special)

    def record(self, row: RowMapping, **elsewhere: Any) -> R:
        """Return the record of a row; ``elsewhere`` are the fields that other tables keep."""
        values: Row = {name: row[name] for name in self.plain}
        for name, codec in self.codecs.items():
            values[name] = codec.decode(row[name])
        for name, digest, size in self.blobs:
            values[name] = None if row[digest] is None else BlobRef(digest=row[digest], size_bytes=row[size])
        return self.record_type(**values, **elsewhere)


TASKS: Final = Mapper(
    TaskRecord,
    tables.TaskRow,
    {"state": _enum(TaskState), "leftover": _RANGES, "metrics": _MAP},
    elsewhere=("spec",),
    derived={"submit_token": lambda task: task.spec.submit_token},
)
CLIENTS: Final = Mapper(ClientRecord, tables.ClientRow, {"resources": _RESOURCES, "tags": _TEXTS, "sandbox": _SANDBOX})
ROUNDS: Final = Mapper(RoundRecord, tables.RoundRow, {"state": _enum(RoundState), "metrics": _MAP})
ASSIGNMENTS: Final = Mapper(
    AssignmentRecord,
    tables.AssignmentRow,
    {"state": _enum(AssignmentState), "kind": _enum(Kind), "ranges": _RANGES, "metrics": _MAP},
    blobs=("update",),
)
CHECKPOINTS: Final = Mapper(
    CheckpointRecord,
    tables.CheckpointRow,
    {"leftover": _RANGES, "metrics": _MAP},
    blobs=("weights", "optimizer", "inner_state", "manifest"),
)
FAILED_STEP: Final = "failed_step:"
"""What the role of a failed step's blob begins with; its line follows."""
FAILED_STEPS: Final = Mapper(
    FailedStepRecord, tables.BlobRow, elsewhere=("line",), derived={"role": lambda step: FAILED_STEP + step.line}
)
ARTEFACT: Final = "artefact:"
"""Likewise of an artefact; its epoch, a colon and its name follow."""
ARTEFACTS: Final = Mapper(
    ArtefactRecord,
    tables.BlobRow,
    elsewhere=("epoch", "name"),
    derived={"role": lambda file: f"{ARTEFACT}{file.epoch}:{file.name}"},
)
OUTPUT: Final = "output:"
"""Likewise of the outputs of a part of a map; its position, in 16 digits, a colon and its items follow."""
OUTPUTS: Final = Mapper(
    OutputRecord,
    tables.BlobRow,
    elsewhere=("position", "samples"),
    derived={"role": lambda part: f"{output_role(part.position)}:{part.samples}"},
)
FAILED_ITEMS: Final = Mapper(FailedItemRecord, tables.FailedItemRow, {"clients": _TEXTS})
EVENTS: Final = Mapper(EventRecord, tables.EventRow, {"data": _MAP})
METRICS: Final = Mapper(MetricRecord, tables.MetricRow, {"value": _NUMBER})
LOGS: Final = Mapper(LogRecord, tables.LogRow)
CREDITS: Final = Mapper(CreditEntry, tables.CreditRow)

MAPPERS: Final[dict[type[Record | Entry], Mapper[Any]]] = {
    mapper.record_type: mapper
    for mapper in (
        *(CLIENTS, TASKS, ROUNDS, ASSIGNMENTS, CHECKPOINTS, FAILED_STEPS, ARTEFACTS, OUTPUTS, FAILED_ITEMS),
        *(EVENTS, METRICS, LOGS, CREDITS),
    )
}

INITIAL_WEIGHTS: Final = "initial_weights"
FROZEN_WEIGHTS: Final = "frozen"
BASE_FILE: Final = "base"
ENVIRONMENT: Final = "environment"
KEPT_ROLES: Final = (INITIAL_WEIGHTS, FROZEN_WEIGHTS, BASE_FILE)
"""The blobs of a submission that outlive a finished task: its models are made of them."""
LEFT_BY_TASKS: Final = (FAILED_STEP, ARTEFACT, OUTPUT)
"""What the roles of blobs begin with that clients stored, and that stay for as long as the task."""

_WITHOUT_BYTES: Final[dict[str, Any]] = {
    "code": BlobRef.CARRIED,
    INITIAL_WEIGHTS: BlobRef.CARRIED,
    FROZEN_WEIGHTS: BlobRef.CARRIED,
    BASE_FILE: {"__all__": {"blob": BlobRef.CARRIED}},
    ENVIRONMENT: BlobRef.CARRIED,
    "dataset": {"shards": {"__all__": {"blob": BlobRef.CARRIED}}},
}


def without_bytes(spec: TaskSpec) -> TaskSpec:
    """Return the specification as the ledger keeps it: the bytes that ride inside its references stay outside."""
    shards = spec.dataset.shards
    refs = [
        spec.code,
        spec.initial_weights,
        spec.frozen,
        spec.environment,
        *(file.blob for file in spec.base),
        *(shard.blob for shard in shards),
    ]
    if all(ref is None or ref.carried is None for ref in refs):
        return spec
    return TaskSpec.model_validate(spec.model_dump(exclude=_WITHOUT_BYTES))


def submission_row(task_id: str, spec: TaskSpec) -> Row:
    """Return the row of ``submissions`` that keeps a task's specification."""
    return {"task_id": task_id, "spec": spec.model_dump(exclude=_WITHOUT_BYTES)}


def blob_rows(task_id: str, spec: TaskSpec) -> list[Row]:
    """Return the rows of ``blobs``: what the specification refers to."""
    named = [("code", spec.code), (INITIAL_WEIGHTS, spec.initial_weights)]
    named += [] if spec.frozen is None else [(FROZEN_WEIGHTS, spec.frozen)]
    named += [(BASE_FILE, file.blob) for file in spec.base]
    named += [] if spec.environment is None else [(ENVIRONMENT, spec.environment)]
    named += [("shard", shard.blob) for shard in spec.dataset.shards if shard.blob is not None]
    return [
        {"task_id": task_id, "role": role, "digest": ref.digest, "size_bytes": ref.size_bytes} for role, ref in named
    ]


def failed_step_record(row: RowMapping) -> FailedStepRecord:
    """Return the failed step of a row of ``blobs``."""
    return FAILED_STEPS.record(row, line=str(row["role"]).removeprefix(FAILED_STEP))


def artefact_record(task_id: str, role: str, digest: str, size_bytes: int) -> ArtefactRecord:
    """Return the artefact of a row of ``blobs``."""
    epoch, _, name = role.removeprefix(ARTEFACT).partition(":")
    return ArtefactRecord(task_id, int(epoch), name, digest, size_bytes)


def output_role(position: int) -> str:
    """Return what the role of the outputs from an item on begins with: roles are in the order of positions."""
    return f"{OUTPUT}{position:016d}"


def output_record(task_id: str, role: str, digest: str, size_bytes: int) -> OutputRecord:
    """Return the outputs of a row of ``blobs``."""
    position, _, samples = role.removeprefix(OUTPUT).partition(":")
    return OutputRecord(task_id, int(position), int(samples), digest, size_bytes)


def task_record(row: RowMapping) -> TaskRecord:
    """Return the task of a row of ``tasks`` joined with its submission's ``spec``."""
    try:
        return TASKS.record(row, spec=TaskSpec.model_validate(row["spec"]))
    except ValidationError as error:
        readable = without_refused_fields(row["spec"], error)
        return given_up(TASKS.record(row, spec=readable), error)
