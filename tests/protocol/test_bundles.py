"""The rules of a code bundle, which server and clients share."""

import io
import zipfile

import pytest

from protocol.bundles import MAX_BUNDLE_FILES, TAIL_BYTES, Inventory, directory_fault


def tail(count=1, comment=b""):
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.comment = comment
        for number in range(count):
            archive.writestr(f"{number}", "")
    return output.getvalue()[-TAIL_BYTES:]


def faults(*names, **fields):
    inventory, found = Inventory(), []
    for name in names:
        entry = zipfile.ZipInfo(name)
        entry.filename = name  # as a damaged directory may say it
        for field, value in fields.items():
            setattr(entry, field, value)
        found.append(inventory.add(entry))
    return found


def test_a_plain_bundle_has_no_fault():
    assert faults("train.py", "pkg/", "pkg/mod.py", "pkg/deep/mod.py", "pkg/träin.py") == [None] * 5
    assert directory_fault(tail()) is None
    assert directory_fault(tail(comment=b"c" * 65_535)) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.py", "a.py"], "two entries"),
        (["a", "a/b.py"], "folder with the name"),
        (["a/b.py", "a"], "two entries"),
        (["a", "a/"], "folder with the name"),
        (["a\x00b.py"], "control"),
        (["a\x1b[2J.py"], "control"),
        (["a\udc80.py"], "control"),
        (["ä" * 101 + ".py"], "more than 200 bytes"),
        (["/".join(["abcdefghi"] * 110)], "more than 200 bytes"),
        (["../a.py"], "leads out"),
    ],
)
def test_names_that_some_machine_cannot_make_are_refused(names, words):
    *before, last = faults(*names)
    assert before == [None] * len(before)
    assert words in last
    assert last.isascii()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"flag_bits": 1}, "encrypted"),
        ({"compress_type": 14}, "method 14"),
        ({"external_attr": 0o120777 << 16}, "link"),
    ],
)
def test_entries_that_cannot_be_unpacked_everywhere_are_refused(fields, words):
    assert words in faults("a.py", **fields)[0]


def test_a_directory_that_is_too_large_is_refused_unread():
    assert "at most 10000" in directory_fault(tail(MAX_BUNDLE_FILES + 1))
    names = [str(number) for number in range(MAX_BUNDLE_FILES + 1)]
    assert "may have" in faults(*names)[-1]


def test_what_is_no_zip_or_needs_zip64_is_refused():
    assert "not a zip" in directory_fault(b"")
    assert "not a zip" in directory_fault(tail()[:-1])
    end = tail()[-22:]
    assert "ZIP64" in directory_fault(b"PK\6\7" + bytes(16) + end)
