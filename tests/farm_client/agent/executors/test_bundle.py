import errno
import io
import random
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.errors import BadBundle
from farm_client.agent.executors.bundle import unpack_bundle


@pytest.fixture
def zipped(tmp_path):
    def make(*entries):
        path = tmp_path / "bundle.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in entries:
                archive.writestr(entry, data)
        return path

    return make


def test_files_and_folders_are_unpacked(tmp_path, zipped):
    unpack_bundle(zipped(("train.py", "a"), ("pkg/", ""), ("pkg/deep/mod.py", "b")), tmp_path / "code")
    assert (tmp_path / "code" / "train.py").read_text() == "a"
    assert (tmp_path / "code" / "pkg" / "deep" / "mod.py").read_text() == "b"


@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "/evil.py", "..\\evil.py", "C:evil.py", "."])
def test_no_path_leads_out(tmp_path, zipped, name):
    with pytest.raises(BadBundle, match="leads out"):
        unpack_bundle(zipped(("ok.py", "a"), (name, "b")), tmp_path / "code")
    assert not (tmp_path / "code").exists()
    assert not (tmp_path / "evil.py").exists()


def test_a_link_is_refused(tmp_path, zipped):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BadBundle, match="link"):
        unpack_bundle(zipped((link, "/etc/passwd")), tmp_path / "code")


def test_a_zip_bomb_stops_at_the_limit(tmp_path, zipped):
    with pytest.raises(BadBundle, match="too large"):
        unpack_bundle(zipped(("bomb", b"\0" * 10_000_000)), tmp_path / "code", max_bytes=1_000_000)


def test_what_is_no_zip_says_so(tmp_path):
    path = tmp_path / "bundle.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(BadBundle, match="submit it again"):
        unpack_bundle(path, tmp_path / "code")


def test_a_damaged_entry_says_so(tmp_path):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("train.py", "some code")
    path = tmp_path / "bundle.zip"
    path.write_bytes(memory.getvalue().replace(b"some code", b"evil code"))
    with pytest.raises(BadBundle, match="CRC"):
        unpack_bundle(path, tmp_path / "code")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whatever_is_damaged_is_the_bundles_fault(tmp_path_factory, compression, seed, changes):
    """Random bytes overwritten anywhere: in a stream, a name, a size, a checksum, the directory or its end."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        archive.writestr("träin.py", "x = 1\n" * 50)
        archive.writestr("pkg/mod.py", "y = 2\n" * 50)
    data, draw = bytearray(memory.getvalue()), random.Random(seed)
    for _ in range(changes):
        data[draw.randrange(len(data))] = draw.randrange(256)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "bundle.zip").write_bytes(data)
    with suppress(BadBundle):  # some changes leave it sound; nothing else may come out
        unpack_bundle(folder / "bundle.zip", folder / "code")


def test_a_full_disk_is_not_the_bundles_fault(tmp_path, zipped, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    bundle = zipped(("train.py", "a"))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space"):
        unpack_bundle(bundle, tmp_path / "code")
