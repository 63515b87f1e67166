"""Reading a spooled update where it lies in the page cache: the same bytes, and errors instead of signals."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from farm_server.tensors import mapped_reader
from farm_server.tensors.mapped_reader import SMALLEST_MAP_BYTES, MappedFileReader
from protocol.errors import MalformedTensors, Unavailable

LARGE = np.arange(SMALLEST_MAP_BYTES, dtype=np.float32)

pytestmark = pytest.mark.skipif(not mapped_reader._CAN_POPULATE, reason="this system cannot populate a map")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    safetensors.numpy.save_file({"small": np.arange(5.0), "large": LARGE, "last": LARGE[::-1].copy()}, file)
    return file


@pytest.mark.parametrize("name", ["large", "last"])
def test_a_tensor_is_seen_where_it_lies(path, name):
    with MappedFileReader(path) as reader:
        view = reader.view(name)
        copied = bytearray(LARGE.nbytes)
        reader.read_into(name, 0, memoryview(copied))
    assert bytes(view) == bytes(copied), "also when the file is closed"


def test_small_and_very_large_tensors_are_read_instead(path, monkeypatch):
    with MappedFileReader(path) as reader:
        assert reader.view("small") is None
        monkeypatch.setattr(mapped_reader, "LARGEST_MAP_BYTES", LARGE.nbytes - 1)
        assert reader.view("large") is None


def test_without_the_call_that_makes_it_safe_nothing_is_mapped(path, monkeypatch):
    monkeypatch.setattr(mapped_reader, "_CAN_POPULATE", False)
    with MappedFileReader(path) as reader:
        assert reader.view("large") is None


def test_a_file_that_is_cut_is_an_error_and_no_signal(path, monkeypatch):
    with MappedFileReader(path) as reader:
        os.truncate(path, reader.header.tensors["large"].start + 10)
        with pytest.raises(MalformedTensors, match="cut"):
            reader.view("large")
        monkeypatch.setattr(reader, "_check_whole", lambda: None)  # it is cut a moment later
        with pytest.raises(MalformedTensors, match="cut"):
            reader.view("large")


def test_a_page_that_cannot_be_had_is_an_error_and_no_signal(path, monkeypatch):
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped_reader._populate(mapped)
        os.truncate(path, 0)
        with pytest.raises(OSError, match="Bad address"):
            mapped_reader._populate(mapped)


def test_a_disk_that_fails_is_told(path, monkeypatch):
    def fail(_mapped):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mapped_reader, "_populate", fail)
    with MappedFileReader(path) as reader, pytest.raises(Unavailable):
        reader.view("large")
