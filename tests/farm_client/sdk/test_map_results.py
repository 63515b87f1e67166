"""Outputs are read in order, from any item on, and written as a file of results or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from farm_client.outputs import ItemError, pack_output
from farm_client.sdk import map_results
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.map_results import read_outputs, write_results
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch
from protocol.maps import OutputList, OutputView
from protocol.outputs import join_outputs
from protocol.tasks import BlobRef


class FakeApi:
    """Lists one part more each time that it is asked, with five items each."""

    def __init__(self, parts: int, *, is_over: bool = True) -> None:
        self.data = [join_outputs([pack_output(5 * part + n) for n in range(5)]) for part in range(parts)]
        self.asked = 0
        self.is_over = is_over
        self.shown = parts

    def outputs(self, _task_id: str, start: int) -> OutputList:
        self.asked += 1
        views = [
            OutputView(position=5 * part, items=5, digest=digest_bytes(data), size_bytes=len(data))
            for part, data in enumerate(self.data[: self.shown])
            if 5 * part + 5 > start
        ]
        return OutputList(task_id="t", outputs=tuple(views), items=5 * len(self.data), is_over=self.is_over)

    def download(self, blob: BlobRef, path: Path) -> None:
        path.write_bytes(next(data for data in self.data if digest_bytes(data) == blob.digest))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_results, "download_weights", lambda api, blob, path: api.download(blob, path))


def read(api: FakeApi, start: int = 0, **options: Any) -> list[Any]:
    return list(read_outputs(cast("Any", api), "t", start, **options))


def test_outputs_are_read_in_order_from_any_item_on() -> None:
    assert read(FakeApi(3)) == list(range(15))
    assert read(FakeApi(3), 7) == list(range(7, 15))
    assert read(FakeApi(3), 15) == []


def test_who_does_not_follow_gets_what_is_there() -> None:
    api = FakeApi(3, is_over=False)
    api.shown = 1
    assert read(api) == list(range(5))


def test_who_follows_waits_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi(3, is_over=False)
    api.shown = 1
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        api.shown += len(waits) % 2 == 0

    monkeypatch.setattr(map_results.time, "sleep", wait)
    assert read(api, follow=True) == list(range(15))
    assert waits[1] > waits[0], "it asks less often while nothing comes"


def test_a_task_that_ended_before_its_last_item_is_not_waited_for() -> None:
    api = FakeApi(3)
    api.shown = 1
    assert read(api, follow=True) == list(range(5))


def test_damaged_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_results, "download_weights", lambda _api, _blob, path: path.write_bytes(b"other"))
    with pytest.raises(DigestMismatch):
        read(FakeApi(1))


def test_lines_have_an_item_each(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    assert write_results(iter([1, {"a": np.ones(1)}, ItemError(2, "no")]), path) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [1, {"a": [1.0]}, {"position": 2, "error": "no", "traceback": ""}]


def test_arrays_have_a_row_for_each_item(tmp_path: Path) -> None:
    write_results(iter([{"x": np.ones(2) * n, "y": n} for n in range(3)]), tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as found:
        assert (found["x"].shape, found["y"].tolist()) == ((3, 2), [0, 1, 2])
    write_results(iter([1.5, 2.5]), tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as found:
        assert found["outputs"].tolist() == [1.5, 2.5]


def test_a_table_has_a_row_for_each_item(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_results(iter([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]), tmp_path / "r.parquet")
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    write_results(iter([1, 2]), tmp_path / "n.parquet")
    assert parquet.read_table(tmp_path / "n.parquet").to_pylist() == [{"output": 1}, {"output": 2}]
    with pytest.raises(BadOutput, match="rows of one type"):
        write_results(iter([1, "x"]), tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([[1], [1, 2]], "different shapes"),
        ([{"a": 1}, {"b": 1}], "other names"),
        ([None, 1], "no array"),
        ([ItemError(0, "no")], "item 0 has an error"),
    ],
)
def test_what_is_no_array_is_told(tmp_path: Path, outputs: list[Any], says: str) -> None:
    with pytest.raises(BadOutput, match=says):
        write_results(iter(outputs), tmp_path / "r.npz")


def test_a_place_that_can_not_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match="suffix"):
        write_results(iter([]), tmp_path / "r.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOutput, match="can't be written"):
        write_results(iter([]), tmp_path / "file" / "r.jsonl")
    with pytest.raises(BadOutput, match="folder"):
        write_results(iter([]), tmp_path)
