"""Reading tensor files by pieces from the disk, and writing them from pieces in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_server.tensors.task_tensors import wrapped
from farm_server.tensors.tensor_reader import FileReader, header_of_file
from protocol.codecs.tensor_file import header_bytes
from protocol.errors import MalformedTensors, NotFound, Unavailable
from protocol.tensors import read_header
from protocol.zstd import is_wrapped, unwrap_bytes

_dtypes = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
_shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
_tensors = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(_dtypes, _shapes), min_size=1, max_size=5)
_any_folder = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(drawn: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {name: np.asarray(random.standard_normal(shape) * 9, dtype) for name, (dtype, shape) in drawn.items()}


@_any_folder
@given(drawn=_tensors, data=st.data())
def test_any_piece_of_any_tensor_is_read(tmp_path: Path, drawn, data):
    tensors = made(drawn)
    path = tmp_path / "file"
    safetensors.numpy.save_file(tensors, path)
    with FileReader(path) as reader:
        assert reader.header == read_header(path.read_bytes())
        assert path.read_bytes().startswith(reader.lead)
        for name, tensor in tensors.items():
            raw = tensor.tobytes()
            start = data.draw(st.integers(0, len(raw)))
            stop = data.draw(st.integers(start, len(raw)))
            buffer = bytearray(stop - start)
            reader.read_into(name, start, memoryview(buffer))
            assert bytes(buffer) == raw[start:stop]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    safetensors.numpy.save_file({"a": np.arange(1000.0), "b": np.arange(4, dtype=np.int8)}, file)
    return file


def test_a_piece_beyond_a_tensor_is_refused(path):
    with FileReader(path) as reader, pytest.raises(MalformedTensors, match="'a'"):
        reader.read_into("a", 7999, memoryview(bytearray(2)))


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_no_signal(path):
    with FileReader(path) as reader:
        os.truncate(path, len(reader.lead) + 100)
        reader.read_into("a", 0, memoryview(bytearray(100)))
        with pytest.raises(MalformedTensors, match="cut"):
            reader.read_into("a", 0, memoryview(bytearray(101)))


def test_a_short_read_is_read_on(path, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at))
    buffer = bytearray(8000)
    with FileReader(path) as reader:
        reader.read_into("a", 0, memoryview(buffer))
    assert np.array_equal(np.frombuffer(buffer), np.arange(1000.0))


@pytest.mark.parametrize("size", [0, 5, 8, 50])
def test_a_file_without_a_whole_header_is_malformed(path, size):
    os.truncate(path, size)
    with pytest.raises(MalformedTensors):
        header_of_file(path)


def test_a_file_that_is_gone_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="nothing"):
        FileReader(tmp_path / "nothing")


def test_a_disk_that_fails_is_unavailable(path, monkeypatch):
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with FileReader(path) as reader:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(Unavailable, match="Input/output"):
            reader.read_into("a", 0, memoryview(bytearray(1)))


def test_no_descriptor_is_left_open(path):
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    for forget in (True, False):
        FileReader(path, forget=forget).close()
    path.write_bytes(b"no tensor file")
    with pytest.raises(MalformedTensors):
        FileReader(path)
    if before is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@_any_folder
@given(drawn=_tensors, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_a_header_is_written_as_it_is_read_and_the_library_reads_it_too(tmp_path: Path, drawn, metadata):
    tensors = dict(sorted(made(drawn).items(), key=lambda item: -item[1].itemsize))
    header = read_header(safetensors.numpy.save(tensors, metadata or None))
    ordered = dict(sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    data = b"".join(tensors[name].tobytes() for name in ordered)
    file = header_bytes(type(header)(ordered, header.metadata, header.total_bytes)) + data
    again = read_header(file)
    assert (again.metadata, list(again.tensors)) == (header.metadata, list(ordered))
    for name, tensor in safetensors.numpy.load(file).items():
        assert np.array_equal(tensor, tensors[name])


@given(st.lists(st.binary(max_size=50).map(lambda piece: piece * 100), max_size=6))
def test_chunks_are_compressed_as_one_file(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    after = b"".join(wrapped(list(chunks)))
    assert (unwrap_bytes(after, len(whole)) if is_wrapped(after) else after) == whole
