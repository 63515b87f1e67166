"""Open data files as streams of rows, by their suffix; several files of one form are read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from farm_client.data.columns import Block, DataError
from farm_client.data.guarded import GuardedFile, RowSource
from farm_client.data.jsonl import JsonLines
from farm_client.data.npz import NpzArrays
from farm_client.data.parquet import ParquetTable
from farm_client.data.regular_file import kind_of, require_regular
from farm_client.data.tensor_file import TensorFile
from farm_client.data.text import DEFAULT_ROW_BYTES, TextFile

_TEXT_SUFFIXES: Final = (".txt", ".md", ".text")
_OPENERS: Final[dict[str, Callable[[Path], RowSource]]] = {
    ".npz": NpzArrays,
    ".safetensors": TensorFile,
    ".parquet": ParquetTable,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
}


def open_data(paths: Sequence[Path], row_bytes: int = DEFAULT_ROW_BYTES) -> RowSource:
    """Open data files; a folder stands for the data files in it, sorted by name. Only regular files are read.

    ``row_bytes`` is the length of a row of a text file.
    Raises: DataError if there is none, one cannot be read, has no rows, or their columns differ.
    """
    files = [file for path in paths for file in _files_of(path)]
    if not files:
        raise DataError(f"there is no data file in {', '.join(map(str, paths)) or 'what was given'}; {_known()}")
    sources = [_open(file, row_bytes) for file in files]
    source = sources[0] if len(sources) == 1 else Chain(files, sources)
    if source.rows == 0:
        raise DataError(f"the data set is empty: {', '.join(file.name for file in files[:3])} has no rows")
    return source


class Chain:
    """Several sources with the same columns, read one after the other."""

    def __init__(self, files: Sequence[Path], sources: Sequence[RowSource]) -> None:
        """Raises: DataError naming the first file whose columns differ from the first file's."""
        self.files = files
        self.sources = sources
        self.columns = sources[0].columns
        for file, source in zip(files, sources, strict=True):
            if set(source.columns) != set(self.columns):
                raise DataError(f"{file.name} has other columns than {files[0].name}; all data files must agree")
        self.rows = sum(source.rows for source in sources)
        self.size_bytes = sum(source.size_bytes for source in sources)
        self.notes = tuple(note for source in sources for note in source.notes)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        for source in self.sources:
            yield from source.blocks(rows)


def _files_of(path: Path) -> list[Path]:
    if kind_of(path) == "a folder":
        return _files_in(path)
    if not _is_known(path):
        raise DataError(f"{path.name} is of no known form; {_known()}, or write make_dataset(config) in your code")
    require_regular(path)
    return [path]


def _files_in(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if _is_known(file))
    except OSError as error:
        raise DataError(f"the data folder {folder} cannot be read: {error.strerror}") from error
    for file in files:
        require_regular(file)
    return files


def known_suffixes() -> tuple[str, ...]:
    """Return the endings of files that can be data."""
    return (*_OPENERS, *_TEXT_SUFFIXES)


def _is_known(file: Path) -> bool:
    return file.suffix.lower() in known_suffixes()


def _known() -> str:
    return "data files end in " + ", ".join(known_suffixes())


def _open(file: Path, row_bytes: int) -> RowSource:
    suffix = file.suffix.lower()
    if suffix in _TEXT_SUFFIXES:
        return GuardedFile(file, lambda path: TextFile(path, row_bytes))
    return GuardedFile(file, _OPENERS[suffix])
