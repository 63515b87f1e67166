"""From a function and its data to a task: rows in the order of the data, and bad input refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from farm_client.data.shards import read_shard
from farm_client.executor.map_trial import try_map
from farm_client.executor.map_trial_records import MapTrialRequest
from farm_client.sdk import map_submission
from farm_client.sdk.check import CheckFailed
from farm_client.sdk.child_process import ChildAnswer
from farm_client.sdk.map_submission import MapSubmission, prepare_map
from farm_client.sdk.submission import Prepared
from farm_client.sdk.warm_start import WarmStart
from protocol.errors import FarmError, InvalidTask
from protocol.maps import OnError
from protocol.tasks import BlobRef, TaskSpec

GOOD = "def map_item(item, config):\n    return 1\n"
BATCHES = "def map_batch(batch, config):\n    return list(batch)\n"


@pytest.fixture(autouse=True)
def tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial runs in this process: its own is tests/e2e's."""

    def ask(_module: str, request: str, _folder: Path) -> ChildAnswer:
        report = try_map(MapTrialRequest.model_validate_json(request))
        return ChildAnswer(report.model_dump_json().encode(), 0, "printed")

    monkeypatch.setattr(map_submission, "ask_child", ask)
    monkeypatch.setattr("farm_client.executor.map_trial.work_beside", lambda *_: None)


def prepared(tmp_path: Path, code: str = GOOD, **fields: Any) -> Prepared:
    path = tmp_path / "fn.py"
    path.write_text(code)
    folder = tmp_path / "work"
    folder.mkdir()
    if not fields.keys() & {"data", "items"}:
        fields["items"] = 10
    return prepare_map(MapSubmission(code=path, **fields), folder)


def test_a_range_is_a_data_set_of_numbers(tmp_path: Path) -> None:
    spec = prepared(tmp_path, items=7, seed=3, on_error=OnError.SKIP, config={"a": 1}).spec
    assert (spec.dataset.kind, [shard.samples for shard in spec.dataset.shards]) == ("code", [7])
    assert spec.map is not None
    assert (spec.map.on_error, spec.map.batch_items, spec.recipe.seed) == (OnError.SKIP, 1, 3)
    assert "maps" in spec.needs
    assert (spec.name, spec.rehearsed) == ("fn", True)


def test_rows_stay_in_the_order_of_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(100))
    found = prepared(tmp_path, data=(tmp_path / "x.npz",))
    shards = found.spec.dataset.shards
    assert len(shards) > 1
    rows: list[int] = []
    for shard in shards:
        assert shard.blob is not None
        path = found.blobs[shard.blob.digest]
        assert isinstance(path, Path)
        table = read_shard(path)
        rows += table.kept()["x"].tolist()  # type: ignore[index]
    assert rows == list(range(100))


def test_only_a_function_of_batches_has_batches(tmp_path: Path) -> None:
    spec = prepared(tmp_path, BATCHES, batch_items=4).spec
    assert spec.map is not None
    assert spec.map.batch_items == 4


def test_a_tasks_weights_are_files_of_the_base(tmp_path: Path) -> None:
    refs = [BlobRef(digest=letter * 64, size_bytes=9) for letter in "ab"]
    weights = WarmStart("t@3", dict.fromkeys(refs), lambda *_: None)  # type: ignore[arg-type]  # nobody looks inside
    spec = prepared(tmp_path, weights=weights).spec
    assert [(file.path, file.blob) for file in spec.base] == [
        ("model.safetensors", refs[0]),
        ("frozen.safetensors", refs[1]),
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"items": 0}, "no item to map"),
        ({"items": 5, "data": (Path("x.npz"),)}, "give one of them"),
        ({"items": None}, "give one of them"),
        ({"config": {"setup": 1}}, "a value setup"),
        ({"part_items": 3, "batch_items": 2}, "multiple of batch_items"),
        ({"part_items": 0}, "part_items"),
        ({"priority": 77}, "priority"),
        ({"config": {"x": object()}}, "cannot be sent"),
        ({"data": (Path("nowhere.npz"),)}, "nowhere.npz"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(FarmError, match=says):
        prepared(tmp_path, BATCHES, **fields)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(FarmError, match=r"x\.jsonl"):
        prepared(tmp_path, data=(tmp_path / "x.jsonl",))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\n", "no function map_item"),
        ("def map_item(item, config):\n    return object()\n", "can't be an output"),
        ("def map_item(item, config):\n    raise KeyError('q')\n", r"KeyError.*\(item 0\)"),
        ("def setup(config):\n    1 / 0\n" + GOOD, "ZeroDivisionError"),
        ("def map_item(item\n", "SyntaxError"),
    ],
)
def test_code_that_fails_here_is_not_submitted(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(CheckFailed, match=says):
        prepared(tmp_path, code)


def test_a_trial_that_ends_its_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_submission, "ask_child", lambda *_: ChildAnswer(None, 3, "bye"))
    with pytest.raises(CheckFailed, match="exit code 3"):
        prepared(tmp_path)


def test_a_base_and_weights_are_not_both(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    weights = WarmStart("t@3", {}, lambda *_: None)
    with pytest.raises(InvalidTask, match="--base and --weights"):
        prepared(tmp_path, base=tmp_path / "base", weights=weights)


@pytest.mark.parametrize("change", [{"rounds": 3}, {"epochs": 2}, {"max_seconds": 5.0}])
def test_a_map_with_a_recipe_of_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    spec = prepared(tmp_path).spec
    fields = spec.model_dump()
    fields["recipe"] |= change
    with pytest.raises(ValidationError, match="goes over its data once"):
        TaskSpec.model_validate(fields)


def test_code_that_is_not_tried_here_is_not_set_up_either(tmp_path: Path) -> None:
    """What it reads, such as a farm task's weights, may be at the farm alone."""
    code = "def setup(config):\n    return config['base']\ndef map_batch(batch, config):\n    return batch\n"
    assert prepared(tmp_path, code, items=3, check=False).spec.map is not None
    (tmp_path / "work").rename(tmp_path / "before")
    with pytest.raises(CheckFailed, match="base"):
        prepared(tmp_path, code, items=3)
