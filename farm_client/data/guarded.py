"""A file's rows behind one guard: whatever a parser makes of its bytes, the error is typed and names the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from farm_client.data.columns import Block, Column, DataError, is_text
from farm_client.data.regular_file import require_regular
from farm_client.data.shard_file import OFFSETS_SUFFIX

_RESERVED: Final = "__metadata__"
"""What safetensors calls the metadata; no tensor may have the name."""
_SHOWN_REASON_CHARS: Final = 300


class RowSource(Protocol):
    """A data set that can be read from its start, any number of times, in bounded memory."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the columns, in the file's order."""

    @property
    def rows(self) -> int:
        """Count the rows."""

    @property
    def size_bytes(self) -> int:
        """Estimate the bytes of all rows, as stored in shards."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the researcher should know, such as a tail that was dropped."""

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""


class GuardedFile:
    """A regular file as a ``RowSource``. Its reader says the place within the file, the guard which file."""

    def __init__(self, path: Path, open_reader: Callable[[Path], RowSource]) -> None:
        """Raises: DataError if it is no regular file, cannot be read, or its columns cannot be stored."""
        require_regular(path)
        self._path = path
        with _naming(path):
            self._reader = open_reader(path)
            self.rows = self._reader.rows
            self.columns = self._reader.columns
            if self.rows:
                _check_names(self.columns)
        self.size_bytes = self._reader.size_bytes
        self.notes = tuple(f"{path.name}: {note}" for note in self._reader.notes)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``.

        Raises: DataError if they cannot be read, or are not as many as the file said that it has.
        """
        left = self.rows
        with _naming(self._path):
            for block in self._reader.blocks(rows):
                left -= block.rows
                if left < 0:
                    break
                yield block
            if left:
                how = "fewer" if left > 0 else "more"
                raise DataError(f"it has {how} rows than the {self.rows:,} that it says it has: write it again")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path.name}: {error.message}") from error
    except MemoryError as error:
        raise DataError(f"{path.name}: it needs more memory than there is: is it damaged?") from error
    except Exception as error:
        # Parsers raise whatever comes to them (zlib.error, struct.error, KeyError, RecursionError, ...): here all they
        # do is to read one file, so the file is at fault.
        raise DataError(
            f"{path.name}: it cannot be read ({_reason(error)}): is it damaged, or of another form?"
        ) from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return (text or type(error).__name__)[:_SHOWN_REASON_CHARS]


def _check_names(columns: Sequence[Column]) -> None:
    """Refuse names that a shard file cannot have. Raises: DataError."""
    if not columns:
        raise DataError("it has no column")
    names = [column.name for column in columns]
    stored = [*names, *(column.name + OFFSETS_SUFFIX for column in columns if column.is_text)]
    for name in stored:
        if name == _RESERVED or not is_text(name):
            raise DataError(f"a column cannot be called {name!r}: rename it")
    if repeated := [name for name in names if stored.count(name) > 1]:
        raise DataError(f"column {repeated[0]!r} is there twice: rename one of them")
