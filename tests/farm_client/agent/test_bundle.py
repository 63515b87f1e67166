import io
import stat
import zipfile

import pytest

from farm_client.agent import bundle
from farm_client.agent.bundle import unpack_bundle
from farm_client.agent.errors import BadBundle


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


def test_too_many_entries_are_refused(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BUNDLE_FILES", 2)
    with pytest.raises(BadBundle, match="entries"):
        unpack_bundle(zipped(("a", ""), ("b", ""), ("c", "")), tmp_path / "code")


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
