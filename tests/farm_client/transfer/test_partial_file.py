import os
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.transfer import partial_file
from farm_client.transfer.partial_file import PartialFile, read_sidecar, remove_partial
from protocol.digests import digest_bytes
from protocol.errors import Conflict

SIZE = 1000
DATA = bytes(number % 251 for number in range(SIZE))


def write(partial, start, end):
    return partial.write(start, DATA[start:end])


@settings(max_examples=40, deadline=None)
@given(cuts=st.sets(st.integers(1, SIZE - 1), max_size=12), order=st.randoms(), restart_after=st.integers(0, 12))
def test_parts_in_any_order_and_over_a_restart_make_the_whole(tmp_path_factory, cuts, order, restart_after):
    path = tmp_path_factory.mktemp("partial") / "blob.part"
    edges = [0, *sorted(cuts), SIZE]
    parts = list(pairwise(edges))
    order.shuffle(parts)
    partial = PartialFile(path, SIZE)
    for number, part in enumerate(parts):
        if number == restart_after:
            partial.close()
            partial = PartialFile(path, SIZE)
        assert write(partial, *part) == 0
    assert partial.missing() == []
    assert partial.hexdigest() == digest_bytes(DATA)
    partial.finish()
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["blob.part"]


def test_what_came_twice_is_counted(tmp_path):
    partial = PartialFile(tmp_path / "p", SIZE)
    assert write(partial, 0, 600) == 0
    assert write(partial, 500, 700) == 100
    assert partial.present_bytes == 700
    partial.close()


def test_a_killed_process_leaves_what_it_noted(tmp_path):
    killed = PartialFile(tmp_path / "p", SIZE)
    write(killed, 100, 200)
    killed.save()
    write(killed, 200, 300)
    killed._file.close()  # all that a kill does
    again = PartialFile(tmp_path / "p", SIZE)
    assert [tuple(part) for part in again.missing()] == [(0, 100), (200, SIZE)]
    again.close()


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"size_bytes": 1000, "present": "0-2000"}', '{"size_bytes": 1000, "present": "9-1"}', '{"present": 3}'],
)
def test_what_cannot_be_true_of_a_file_is_forgotten(tmp_path, text):
    (tmp_path / "p").write_bytes(b"x" * 500)
    (tmp_path / "p.json").write_text(text)
    assert read_sidecar(tmp_path / "p") is None
    partial = PartialFile(tmp_path / "p", SIZE)
    assert partial.present_bytes == 0
    partial.close()
    assert list(tmp_path.iterdir()) == []


def test_what_came_of_a_blob_of_another_size_is_of_no_use(tmp_path):
    first = PartialFile(tmp_path / "p", SIZE)
    write(first, 0, 500)
    first.close()
    other = PartialFile(tmp_path / "p", SIZE + 1)
    assert other.present_bytes == 0
    other.close()


def test_a_file_that_was_cut_behind_our_back_is_told_by_its_digest(tmp_path):
    partial = PartialFile(tmp_path / "p", SIZE)
    write(partial, 500, SIZE)
    os.truncate(tmp_path / "p", 700)
    write(partial, 0, 500)
    assert partial.hexdigest() != digest_bytes(DATA)
    partial.restart()
    assert partial.present_bytes == 0
    write(partial, 0, SIZE)
    assert partial.hexdigest() == digest_bytes(DATA)
    partial.finish()


def test_the_same_file_is_not_written_by_two(tmp_path):
    first = PartialFile(tmp_path / "p", SIZE)
    with pytest.raises(Conflict, match="another process"):
        PartialFile(tmp_path / "p", SIZE)
    write(first, 0, 10)
    first.close()
    PartialFile(tmp_path / "p", SIZE).close()


def test_a_write_that_comes_after_the_end_does_nothing(tmp_path):
    """The thread of a download that was cancelled may be late; the file's handle may be another file's by then."""
    partial = PartialFile(tmp_path / "p", SIZE)
    write(partial, 0, 10)
    partial.close()
    assert write(partial, 10, 20) == 0
    assert partial.present_bytes == 10
    assert (tmp_path / "p").read_bytes() == DATA[:10]
    remove_partial(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_threads_that_write_at_once_make_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_file, "_READ_ON_BYTES", 64)
    partial, repeated = PartialFile(tmp_path / "p", SIZE), []

    def write_and_count(at):
        repeated.append(write(partial, at, at + 10))

    threads = [threading.Thread(target=write_and_count, args=(at,)) for at in range(SIZE - 10, -1, -10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(repeated) == 0
    assert partial.hexdigest() == digest_bytes(DATA)
    partial.close()


def test_an_empty_blob_is_whole_at_once(tmp_path):
    partial = PartialFile(tmp_path / "p", 0)
    assert partial.missing() == []
    assert partial.hexdigest() == digest_bytes(b"")
    partial.finish()
    assert (tmp_path / "p").read_bytes() == b""
