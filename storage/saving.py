"""The statements that save records, and a record's parameters for them, worked out once for each kind.

Saving a record is the farm's hot path: SQLAlchemy's own way from an object to a row's parameters costs more than SQLite
needs to write it. So SQLAlchemy says what the statement is and how each column's value is passed, and only that.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any, Final

from sqlalchemy import Insert, Table

from coordinator.records import Entry, Record
from protocol.tasks import BlobRef
from storage.mapping import CREDITS, EVENTS, LOGS, MAPPERS, METRICS, ColumnCodec, Mapper
from storage.sqlite import SQLITE
from storage.tables import BlobRow, table_of

Parameters = tuple[Any, ...]
_Make = Callable[[Any], Any]
"""Makes a column's parameter of a record."""

_APPENDED: Final = frozenset({EVENTS.table, METRICS.table, LOGS.table})
_KEPT: Final = frozenset({table_of(BlobRow)})
_ADDED: Final = frozenset({CREDITS.table})


class Saving:
    """How records of one kind are saved: execute ``statement`` with the ``parameters`` of each."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        makes = _makes(mapper)
        columns = [*mapper.plain, *makes]
        compiled = insert_statement(mapper.table).compile(dialect=SQLITE.sql, column_keys=columns)
        self.statement = str(compiled)
        self._plain: Callable[[Any], Parameters] = attrgetter(*mapper.plain)
        self._makes = tuple(makes.values())
        self._in_order: Callable[[list[Any]], Parameters] = itemgetter(
            *(columns.index(name) for name in compiled.positiontup or ())
        )

    def parameters(self, record: Record | Entry) -> Parameters:
        """Return what the statement is given for a record."""
        return self._in_order([*self._plain(record), *[make(record) for make in self._makes]])


def insert_statement(table: Table) -> Insert:
    """Return the statement that saves rows: feeds append, credit adds up, blobs are kept once, all else replaces."""
    if table in _APPENDED:
        return SQLITE.insert(table)
    if table in _ADDED:
        return SQLITE.add(table)
    return SQLITE.insert_once(table) if table in _KEPT else SQLITE.upsert(table)


def _makes(mapper: Mapper[Any]) -> dict[str, _Make]:
    """Return what makes each column that is more than a field's value as it is."""
    makes: dict[str, _Make] = {}
    for name, codec in mapper.codecs.items():
        makes[name] = _encoding(attrgetter(name), codec, _passing(mapper.table, name))
    for name, digest, size in mapper.blobs:
        makes[digest], makes[size] = _of_blob(name, attrgetter("digest")), _of_blob(name, attrgetter("size_bytes"))
    return makes | mapper.derived


def _passing(table: Table, column: str) -> _Make:
    """Return how the database's driver is given a value of the column."""
    processor: _Make | None = table.c[column].type.dialect_impl(SQLITE.sql).bind_processor(SQLITE.sql)
    return processor or _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _encoding(field: _Make, codec: ColumnCodec, passed: _Make) -> _Make:
    if codec.empty is None:
        return lambda record: passed(codec.encode(field(record)))
    empty = passed(codec.empty)

    def encode(record: Any) -> Any:
        value = field(record)
        return passed(codec.encode(value)) if value else empty

    return encode


def _of_blob(name: str, part: _Make) -> _Make:
    def make(record: Any) -> Any:
        ref: BlobRef | None = getattr(record, name)
        return None if ref is None else part(ref)

    return make


SAVINGS: Final = {kind: Saving(mapper) for kind, mapper in MAPPERS.items()}
