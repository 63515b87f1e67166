"""Any bytes under any known suffix are a data set, or a DataError in one line that names the file."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from farm_client.data import jsonl
from farm_client.data.columns import DataError
from farm_client.data.readers import known_suffixes, open_data
from farm_client.data.sharding import plan_shards, write_shards
from farm_client.data.shards import read_shard


def read_whole(path: Path, folder: Path) -> int:
    """Read a data set as `farm submit` and its volunteers do, and return its rows."""
    source = open_data([path], row_bytes=4)
    folder.mkdir(exist_ok=True)
    _, files = write_shards(source, plan_shards(source.rows, source.size_bytes, 0.0), folder, seed=0)
    return sum(read_shard(file).samples for file in files.values())


def refusal(path: Path) -> str:
    """Return the sentence with which a data set is refused."""
    with pytest.raises(DataError) as refused:
        read_whole(path, path.with_name("shards"))
    assert "\n" not in refused.value.message
    assert path.name in refused.value.message
    return refused.value.message


def npz_bytes(*, compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


X = np.arange(12, dtype=np.float32).reshape(4, 3)
GOOD = {
    ".npz": [npz_bytes(x=X, w=np.array(["a", "b", "c", "d"])), npz_bytes(compressed=True, f=np.asfortranarray(X))],
    ".safetensors": [safetensors.numpy.save({"x": X})],
    ".parquet": [parquet_bytes(pa.table({"x": X.tolist(), "w": ["a", "b", "c", "d"], "n": [1, 2, 3, 4]}))],
    ".jsonl": [b"".join(json.dumps({"x": row.tolist(), "w": "a", "n": 1}).encode() + b"\n" for row in X)],
    ".ndjson": [b'{"a": 1}\n'],
    ".txt": [b"abcdefgh"],
    ".md": [b"abcdefgh"],
    ".text": [b"abcdefgh"],
}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a suffix, and bytes: any at all, or a good file that was cut, lengthened or changed in some places."""
    suffix = draw(st.sampled_from(sorted(GOOD)))
    if draw(st.booleans()):
        return suffix, draw(st.binary(max_size=64))
    data = bytearray(draw(st.sampled_from(GOOD[suffix])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return suffix, bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files())
@example(file=(".jsonl", b'{"a": 1e999}\n'))
@example(file=(".jsonl", b'{"": 1}\n'))
@example(file=(".jsonl", b'{"a": ' + b"9" * 5000 + b"}\n"))
def test_any_bytes_are_a_data_set_or_a_typed_error(tmp_path: Path, file: tuple[str, bytes]) -> None:
    suffix, data = file
    path = tmp_path / f"d{suffix}"
    path.write_bytes(data)
    refused = None
    try:
        assert read_whole(path, tmp_path / "shards") > 0
    except DataError as error:
        refused = error.message
    assert refused is None or (path.name in refused and "\n" not in refused)


def test_every_known_suffix_is_tried() -> None:
    assert set(GOOD) == set(known_suffixes())


ENCODINGS = {
    "latin-1": (b'{"t": "fine"}\n{"t": "caf\xe9"}\n', r"line 2 is not UTF-8 \(byte 0xe9 at character 11\)"),
    "utf-16 with a mark": ('{"x": 1}\n'.encode("utf-16"), "it is UTF-16: save it as UTF-8"),
    "utf-32 with a mark": ('{"x": 1}\n'.encode("utf-32"), "it is UTF-32"),
    "utf-16 without a mark": ('{"x": 1}\n'.encode("utf-16-le"), "line 1 .*is it UTF-16"),
    "lone surrogate": (b'{"t": "a"}\n{"t": "\\ud83d"}\n', "line 2: field 't' has a lone surrogate"),
    "lone surrogate in a name": (b'{"\\ud83d": 1}\n', "cannot be called"),
    "deep": (b'{"x": ' + b"[" * 100_000 + b"1" + b"]" * 100_000 + b"}\n", "line 1 is nested too deeply"),
    "deep list": (b'{"x": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}\n", "line 1: field 'x'"),
    "beyond int64": (
        b'{"n": 1}\n{"n": 9223372036854775808}\n',
        "line 2: field 'n' has 9223372036854775808, beyond int64",
    ),
    "below int64": (b'{"n": -9223372036854775809}\n', "line 1: field 'n' has -9223372036854775809, beyond int64"),
    "beyond uint64": (b'{"n": [1, 18446744073709551616]}\n', "line 1: field 'n' has 18446744073709551616"),
    "signed beside unsigned": (b'{"n": [-1, 18446744073709551615]}\n', "line 1: field 'n' has 18446744073709551615"),
    "beyond float32": (b'{"n": 0.5}\n{"n": 1e300}\n', "line 2: field 'n' has 1e.300, beyond float32"),
    "ragged": (b'{"a": [1, 2]}\n{"a": [1]}\n', "line 2: field 'a' is .* pad the lists"),
    "ragged inside": (b'{"a": [[1, 2], [1]]}\n', "line 1: field 'a' .* pad them"),
    "empty list": (b'{"a": []}\n', "column 'a' has empty rows"),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_lines_that_cannot_be_used_are_named(tmp_path: Path, case: str) -> None:
    data, sentence = ENCODINGS[case]
    path = tmp_path / "d.jsonl"
    path.write_bytes(data)
    assert re.search(sentence, refusal(path))


def test_a_mark_at_the_beginning_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\r\n{"x": 2}\r\n')
    assert open_data([path]).columns[0].name == "x"
    assert read_whole(path, tmp_path / "shards") == 2


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_CHARS", 100)
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"x": "' + b"a" * 200 + b'"}\n')
    assert "line 1 is longer than" in refusal(path)


def member_bytes(header: str, data: bytes) -> bytes:
    """Return an .npy file with a header that says what it likes."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive_bytes(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def encrypted(data: bytes) -> bytes:
    """Set the flag of encryption in an archive's directory and in its members."""
    flags = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        flags[data.index(mark) + offset] |= 1
    return bytes(flags)


F4 = "{'descr': '<f4', 'fortran_order': %s, 'shape': %s}"
ARCHIVES = {
    "false fortran shape": (
        archive_bytes(("x.npy", member_bytes(F4 % (True, (9, 9)), bytes(16)))),
        "array 'x' is damaged",
    ),
    "false shape": (archive_bytes(("x.npy", member_bytes(F4 % (False, (10**15,)), bytes(16)))), "array 'x' is damaged"),
    "negative shape": (archive_bytes(("x.npy", member_bytes(F4 % (False, (-4,)), bytes(16)))), "array 'x' says"),
    "no header": (archive_bytes(("x.npy", b"\x93NUMPY\x01\x00\xff\xff")), "array 'x' is not a NumPy array"),
    "deep header": (archive_bytes(("x.npy", member_bytes("[" * 3000, b""))), "array 'x' is not a NumPy array"),
    "cut": (npz_bytes(x=X)[:-30], "not a NumPy archive"),
    "cut in the middle": (npz_bytes(x=X)[:60], "not a NumPy archive"),
    "damaged array": (npz_bytes(x=X).replace(X.tobytes(), bytes(X.nbytes)), "Bad CRC"),
    "objects": (npz_bytes(x=np.array([{}, {}])), "array|column 'x' .*pickle"),
    "dates": (npz_bytes(x=np.array(["2020-01-01"], "M8[D]")), "save it as numbers"),
    "records": (npz_bytes(x=np.zeros(3, [("a", "f4")])), "save it as numbers"),
    "complex": (npz_bytes(x=np.zeros(3, complex)), "save it as numbers"),
    "encrypted": (encrypted(npz_bytes(x=X)), "encrypted"),
    "wraps": (npz_bytes(y=np.array([1, 2**63 + 5], np.uint64)), "column 'y', row 1: 9223372036854775813 is larger"),
    "wraps in a matrix": (npz_bytes(y=np.array([[1, 1], [1, 2**64 - 1]], np.uint64)), "column 'y', row 1: 1844"),
    "latin-1 bytes": (npz_bytes(t=np.array([b"a", b"caf\xe9"])), "column 't', row 1: its text is not Unicode"),
    "surrogate": (npz_bytes(t=np.array(["a", "\ud83d"])), "column 't', row 1: its text is not Unicode"),
    "one name twice": (
        archive_bytes(*[("x.npy", member_bytes(F4 % (False, (1,)), bytes(4)))] * 2),
        "'x' is there twice",
    ),
    "a reserved name": (npz_bytes(__metadata__=X), "cannot be called '__metadata__'"),
    "a name of our own": (npz_bytes(**{"t": np.array(["a"]), "t#offsets": np.zeros(1)}), "'t#offsets' is there twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_archives_are_refused(tmp_path: Path, case: str) -> None:
    data, sentence = ARCHIVES[case]
    path = tmp_path / "d.npz"
    path.write_bytes(data)
    assert re.search(sentence, refusal(path))


TABLES = {
    "wraps": (
        pa.table({"y": pa.array([1, 2**63 + 5], pa.uint64())}),
        "column 'y', row 1: 9223372036854775813 is larger",
    ),
    "binary": (pa.table({"y": pa.array([b"\xff"])}), "column 'y' is binary: save it as numbers"),
    "not utf-8": (
        pa.table({"t": pa.array([b"a", b"\xff"]).view(pa.string())}),
        "column 't', row 1: its text is not Unicode",
    ),
    "structs": (pa.table({"y": pa.array([{"a": 1}])}), "column 'y' is struct"),
    "decimals": (pa.table({"y": pa.array([1, 2], pa.decimal128(10, 2))}), "column 'y' is decimal128"),
    "ragged": (pa.table({"y": [[1], [1, 2]]}), "column 'y' has lists of several lengths: pad them"),
    "one name twice": (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "'a' is there twice"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, case: str) -> None:
    table, sentence = TABLES[case]
    path = tmp_path / "d.parquet"
    pq.write_table(table, path)
    assert re.search(sentence, refusal(path))


def test_unsigned_numbers_keep_their_values(tmp_path: Path) -> None:
    largest = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "u8": 2**63 - 1}
    arrays = {name: np.array([0, value], name) for name, value in largest.items()}
    (tmp_path / "d.npz").write_bytes(npz_bytes(**arrays))
    pq.write_table(pa.table(arrays), tmp_path / "d.parquet")
    for name in ("d.npz", "d.parquet"):
        source = open_data([tmp_path / name])
        _, files = write_shards(source, plan_shards(2, 8, 0.0), tmp_path, seed=0)
        shards = [read_shard(path) for path in files.values()]
        for column, value in largest.items():
            assert sorted(int(shard._columns[column][0]) for shard in shards) == [0, value]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


SPECIAL = {"a named pipe": fifo, "a device": link_to_a_device, "a folder": Path.mkdir, "a socket": a_socket}


@pytest.mark.parametrize("suffix", known_suffixes())
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    make: Callable[[Path], object] = SPECIAL[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder / f"d{suffix}")
    with pytest.raises(DataError, match=f"d{suffix} is {kind}, not a regular file"):
        open_data([folder])
    if kind != "a folder":
        with pytest.raises(DataError, match=f"d{suffix} is {kind}, not a regular file"):
            open_data([folder / f"d{suffix}"])


@pytest.mark.parametrize("name", ["a" * 300 + ".npz", "a\0b.npz", "nosuch/d.npz", "loop.npz"])
def test_paths_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    with pytest.raises(DataError):
        open_data([tmp_path / name])


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_table_may_have_more_columns_than_there_are_descriptors(tmp_path: Path) -> None:
    arrays = {f"c{i}": np.asfortranarray(X) if i % 2 else X[:, 0] for i in range(300)}
    arrays["w"] = np.array(["a", "b", "c", "d"])
    (tmp_path / "d.npz").write_bytes(npz_bytes(**arrays))
    with few_descriptors(len(list(Path("/proc/self/fd").iterdir())) + 40):
        assert read_whole(tmp_path / "d.npz", tmp_path / "shards") == 4


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"x": 1}\n' * 4)
    source = open_data([path])
    path.write_bytes(b'{"x": 1}\n' * 3)
    with pytest.raises(DataError, match=r"d\.jsonl: it has fewer rows than the 4"):
        list(source.blocks(10))
    path.write_bytes(b'{"x": 1}\n' * 5)
    with pytest.raises(DataError, match=r"d\.jsonl: it has more rows than the 4"):
        list(source.blocks(10))
    path.write_bytes(b'{"z": 1}\n' * 4)
    with pytest.raises(DataError, match=r"d\.jsonl: it cannot be read"):
        list(source.blocks(10))
