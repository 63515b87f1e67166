"""What is read back equals what was saved, for any value that a record may hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from sqlalchemy import Engine, select

from coordinator.lifecycle import TaskState
from coordinator.records import ArtefactRecord, FailedStepRecord, OutputRecord, TaskRecord
from protocol.resources import Resources
from protocol.tasks import BlobRef
from storage.engine import writer_engine
from storage.mapping import MAPPERS, TASKS, Mapper, task_record
from storage.migrate import migrate
from storage.tables import SubmissionRow, table_of
from storage.transaction import Change, StoredSpecs, write_changes
from tests.storage import records as a


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = writer_engine(tmp_path_factory.mktemp("mapping") / "ledger.db")
    migrate(engine)
    yield engine
    engine.dispose()


KEYED = {
    "tasks": a.TASKS,
    "clients": a.CLIENTS,
    "rounds": a.ROUNDS,
    "assignments": a.ASSIGNMENTS,
    "checkpoints": a.CHECKPOINTS,
}
FEEDS = {"events": a.EVENTS, "metrics": a.METRICS, "logs": a.LOGS}


def _saved_and_read(engine: Engine, record: Any) -> Any:
    """Save it in a transaction that is rolled back, and read its row within."""
    mapper = MAPPERS[type(record)]
    change = Change(entries=(record,)) if "seq" in mapper.table.c else Change(records=(record,))
    with engine.connect() as connection:
        write_changes(connection, [change], StoredSpecs())
        query = select(mapper.table)
        if isinstance(record, TaskRecord):
            submissions = table_of(SubmissionRow)
            query = query.add_columns(submissions.c.spec).join(
                submissions, submissions.c.task_id == mapper.table.c.task_id
            )
            return task_record(connection.execute(query).mappings().one())
        return mapper.record(connection.execute(query).mappings().one())


@pytest.mark.parametrize("kind", KEYED | FEEDS)
def test_rows_read_back_equal_the_records_saved(engine: Engine, kind: str) -> None:
    @settings(deadline=None)
    @given((KEYED | FEEDS)[kind])
    def check(record: Any) -> None:
        assert _saved_and_read(engine, record) == record

    check()


def test_rows_hold_no_bytes_that_ride_inside_a_reference(engine: Engine) -> None:
    inline = BlobRef(digest="a" * 64, size_bytes=3, inline=b"\xff\x00\xff")
    bare = inline.model_copy(update={"inline": None})
    spec = a.spec(code=inline, initial_weights=inline)
    found = _saved_and_read(engine, a.task(spec=spec))
    assert (found.spec.code, found.spec.initial_weights) == (bare, bare)
    assert _saved_and_read(engine, a.checkpoint(weights=inline)).weights == bare


def test_what_a_client_once_told_of_itself_and_none_may_tell_today_keeps_no_server_from_starting(
    engine: Engine,
) -> None:
    told = Resources().model_copy(update={"bench_gflops": float("inf"), "hostname": "x" * 5000})
    read = _saved_and_read(engine, a.client(resources=told))
    assert read == a.client(resources=Resources())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"entry": "\udc00.py"}, "entry"),
        ({"name": "x" * 5000}, "name"),
        ({"config": {"x": 10**400}}, "config"),
        ({"recipe": a.spec().recipe.model_copy(update={"batch_samples": 10**30})}, "recipe.batch_samples"),
        ({"requirements": a.spec().requirements.model_copy(update={"tags": ("\udc00",)})}, "requirements.tags.0"),
    ],
)
def test_a_specification_that_none_may_submit_today_is_shown_and_not_worked_on(
    engine: Engine, changes: dict[str, Any], field: str
) -> None:
    odd = a.spec().model_copy(update=changes)
    read = _saved_and_read(engine, a.task(spec=odd))
    assert (read.state, read.spec.code) == (TaskState.CANCELLED, odd.code)
    assert field in read.error
    assert "submit it again" in read.error
    read.spec.model_dump_json()
    finished = a.task(spec=odd, state=TaskState.COMPLETED)
    assert _saved_and_read(engine, finished).state is TaskState.COMPLETED


def test_a_task_that_an_older_server_stored_goes_on_without_its_durable_every(engine: Engine) -> None:
    task = a.task(state=TaskState.RUNNING)
    stored = task.spec.model_dump(mode="json")
    stored["recipe"] |= {"durable_every": 4, "durable_seconds": 30.0}
    submissions = table_of(SubmissionRow)
    with engine.connect() as connection:
        write_changes(connection, [Change(records=(task,))], StoredSpecs())
        connection.execute(submissions.update().values(spec=stored))
        query = select(TASKS.table, submissions.c.spec).join(
            submissions, submissions.c.task_id == TASKS.table.c.task_id
        )
        assert task_record(connection.execute(query).mappings().one()) == task


@pytest.mark.parametrize("mapper", MAPPERS.values(), ids=lambda mapper: mapper.record_type.__name__)
def test_every_field_has_its_columns_and_every_column_its_field(mapper: Mapper[Any]) -> None:
    blobs = {name for name, *_ in mapper.blobs}
    elsewhere = {
        TaskRecord: {"spec"},
        FailedStepRecord: {"line"},
        ArtefactRecord: {"epoch", "name"},
        OutputRecord: {"position", "samples"},
    }.get(mapper.record_type, set())
    kept = {*mapper.plain, *mapper.codecs, *blobs}
    assert kept | elsewhere == {f.name for f in fields(mapper.record_type)}
    columns = {*mapper.plain, *mapper.codecs, *mapper.derived}
    columns |= {column for _, digest, size in mapper.blobs for column in (digest, size)}
    assert columns == {c.name for c in mapper.table.columns} - {"seq"}


def test_a_specification_is_written_once_while_its_task_lives() -> None:
    stored = StoredSpecs()
    task = a.task()
    assert stored.lacks(task)
    stored.committed([Change(records=(task,))])
    assert not stored.lacks(task)
    assert stored.lacks(a.task())  # equal, but another object: only identity is cheap and sure
