from __future__ import annotations

import json
from typing import Any

import pytest

from farm_server.http.spec_json import MAX_VALUES, parse_spec
from farm_server.tasks.submissions import check_sendable
from protocol.errors import InvalidTask
from protocol.tasks import TaskSpec
from tests.farm_server import model

SPEC: dict[str, Any] = model.spec().model_dump(mode="json")
BLOB = SPEC["dataset"]["shards"][0]["blob"]


def shards(count: int, **changes: Any) -> dict[str, Any]:
    rows = [{"index": i, "samples": 1 + i % 7, "start": i, "blob": BLOB} for i in range(count)]
    return SPEC | {"dataset": {"kind": "files", "shards": rows}} | changes


@pytest.mark.parametrize(
    "spec", [SPEC, shards(1), shards(499), shards(500), shards(1234), shards(2, config={"a": "é"})]
)
def test_it_reads_what_pydantic_reads(spec):
    body = json.dumps(spec).encode()
    assert parse_spec(body) == TaskSpec.model_validate_json(body)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe{", "no JSON"),
        (b"[" * 100_000, "too deep"),
        (b'{"config":' + b'{"a":' * 100_000, "too deep"),
        (b"[1, 2]", "dictionary"),
        (b"7", "dictionary"),
        (json.dumps(SPEC | {"dataset": 7}).encode(), "dataset"),
        (b'{"dataset": {"kind": "files", "shards": 7}}', "name: Field required"),
        (json.dumps(SPEC | {"config": {"x": float("nan")}}).encode(), "NaN is no number"),
        (json.dumps(SPEC | {"config": {"x": float("-inf")}}).encode(), "-Infinity is no number"),
        (b"1" * 5000, "no JSON"),
        (json.dumps(SPEC | {"config": {"x": "\udc00"}}).encode(), "surrogate"),
        (json.dumps(SPEC | {"config": {"\udc00": 1}}).encode(), "surrogate"),
        (json.dumps(SPEC | {"name": "\udc00"}).encode(), "name"),
        (json.dumps(SPEC | {"entry": "\udc00.py"}).encode(), "entry"),
        (json.dumps(SPEC | {"requirements": {"tags": ["\udc00"]}}).encode(), "requirements.tags.0"),
        (b"[" + b"[]," * (MAX_VALUES // 2) + b"1]", "values"),
    ],
)
def test_what_it_refuses_is_named(body, complaint):
    with pytest.raises(InvalidTask, match=complaint):
        parse_spec(body)


def test_a_wrong_shard_is_named_by_its_number():
    spec = shards(2000)
    spec["dataset"]["shards"][1501]["samples"] = 0
    with pytest.raises(InvalidTask, match=r"^dataset\.shards\.1501\.samples: "):
        parse_spec(json.dumps(spec).encode())
    spec = shards(700)
    spec["dataset"]["shards"][600]["index"] = 3
    with pytest.raises(InvalidTask, match="numbered"):
        parse_spec(json.dumps(spec).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"x": 10**30}},
        {"config": {"x": object()}},
        {"config": {"x": "\udc00"}},
        {"entry": "\udc00.py"},
        {"submitter": "\udc00"},
        {"recipe": model.spec().recipe.model_copy(update={"batch_samples": 10**30})},
        {"recipe": model.spec().recipe.model_copy(update={"seed": 2**64})},
    ],
)
def test_a_task_that_cannot_be_told_is_refused_whatever_let_it_through(changes):
    spec = model.spec().model_copy(update=changes)  # which validates nothing
    with pytest.raises(InvalidTask):
        check_sendable(spec)


def test_a_deep_config_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(InvalidTask):
        check_sendable(model.spec().model_copy(update={"config": deep}))


def test_a_sane_task_can_be_told():
    check_sendable(model.spec(config={"a": [1, 2.5, None, "é", {"b": True}]}))
