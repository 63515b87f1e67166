"""What comes from outside is finite, in range and of bounded length, or is refused by the one typed error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from protocol import bounds, rest
from protocol.assignments import LogLine, MetricPoint, Result
from protocol.codec import decode, decode_entry, encode
from protocol.errors import ProtocolError
from protocol.messages import MESSAGE, Drain, Error, Hello
from protocol.recipe import OuterOptimizer, Recipe, Requirements
from protocol.resources import MAX_GPUS, Resources
from protocol.rest import TaskView
from protocol.tasks import TaskSpec
from tests.protocol.samples import BY_TYPE, GPU

INF, NAN = math.inf, math.nan


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: list[object] = [
    *(INF, -INF, NAN, 1e308, -1e308, sys.float_info.max, 5e-324, -5e-324, -0.0, 0.5),
    *(0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30, -(10**4200)),
    *("", "x", "\0", "\udc00", "ü" * 70, "x" * 5_000, "9" * 5_000, "nan", "Infinity", "1e308", "true"),
    *(True, None, b"", b"\xff", [], {}, [[]], {"a": NAN}, {"\udc00": 1}, [NAN] * 3, {1: 2}),
    *(nested(70), {"loss": 1.7e308, "x" * 500: INF}, [{}] * 500, ["x" * 300] * 40, {str(i): i for i in range(300)}),
]
odd_values = st.sampled_from(ODD) | st.integers() | st.floats() | st.text() | st.binary()


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a message."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def replaced(value: Any, way: tuple[Any, ...], odd: object) -> Any:
    if not way:
        return odd
    if isinstance(value, dict):
        return {k: replaced(v, way[1:], odd) if k == way[0] else v for k, v in value.items()}
    return [replaced(v, way[1:], odd) if i == way[0] else v for i, v in enumerate(value)]


def without_bytes(value: object) -> object:
    """JSON has none: the API never shows what rides inside a message."""
    if isinstance(value, dict):
        return {k: without_bytes(v) for k, v in value.items() if not isinstance(v, bytes)}
    return [without_bytes(v) for v in value] if isinstance(value, list | tuple) else value


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("kind", BY_TYPE)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_odd_value_anywhere_is_refused_or_can_be_sent_stored_and_shown(kind: str, data: st.DataObject) -> None:
    fields = BY_TYPE[kind].model_dump()
    way = data.draw(st.sampled_from([w for w in places(fields) if w != ("type",)]))
    try:
        message = decode_entry(replaced(fields, way, data.draw(odd_values)))
    except ProtocolError:
        return
    again = decode(encode(message))
    assert encode(again) == encode(message)
    text = json.dumps(without_bytes(message.model_dump(mode="python")), ensure_ascii=False)
    assert text.encode("utf-8")
    assert all(-(2**63) <= n < 2**64 for n in numbers(again.model_dump()) if isinstance(n, int))


def test_no_value_is_without_bounds() -> None:
    """The kind of mistake behind all of these: a bare int, float, str, list or map in what a stranger may send."""
    schemas = {**MESSAGE.json_schema()["$defs"], **TaskSpec.model_json_schema()["$defs"]}
    schemas["TaskSpec"] = TaskSpec.model_json_schema()
    unbounded = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, value in schema.get("properties", {}).items()
        if not is_bounded(value)
    ]
    assert unbounded == [
        "BlobRef.inline",  # the frame bounds it
        "Load.gpus",  # cut: see below
        "Resources.gpus",
    ]


def is_bounded(schema: dict[str, Any]) -> bool:
    if "bound" in schema or "$ref" in schema or "enum" in schema or "const" in schema:
        return True
    if "anyOf" in schema:
        return all(is_bounded(option) for option in schema["anyOf"])
    match schema["type"]:
        case "boolean" | "null":
            return True
        case "integer" | "number":
            return ("maximum" in schema or "exclusiveMaximum" in schema) and (
                "minimum" in schema or "exclusiveMinimum" in schema
            )
        case "string":
            return "pattern" in schema or "maxLength" in schema
        case "array":
            items = schema.get("items") or schema["prefixItems"][0]
            return "maxItems" in schema and is_bounded(items)
        case "object":
            return "maxProperties" in schema and is_bounded(schema["additionalProperties"])
    return False


def hello(**resources: object) -> Hello:
    fields = {"type": "hello", "versions": [2], "client_id": "c", "client_secret": "s" * 16, "resources": resources}
    message = decode_entry(fields)
    assert isinstance(message, Hello)
    return message


@pytest.mark.parametrize("gflops", [INF, NAN, 1e308, -1.0, 2e12])
def test_a_speed_that_no_machine_has_is_refused(gflops: float) -> None:
    with pytest.raises(ProtocolError, match="bench_gflops"):
        hello(bench_gflops=gflops)


def test_a_speed_that_is_too_small_to_be_one_counts_as_unknown() -> None:
    assert hello(bench_gflops=5e-324).resources.bench_gflops == 0.0
    assert hello(bench_gflops=0.5).resources.bench_gflops == 0.5


def test_texts_for_people_are_cut_and_made_writable_rather_than_refused() -> None:
    resources = hello(hostname="x" * 4_000_000, platform="\udc00").resources
    assert (resources.hostname, resources.platform) == ("x" * 100, "?")
    assert len(Drain(reason="r" * 4_000_000).reason) == 2000
    assert len(LogLine(text="é" * 5000).text) == 2000
    assert MetricPoint(name="m" * 40_000, value=NAN).name == "m" * 100
    error = Error(code="c" * 100, message="m" * 5000, traceback="old" + "t" * 20_000)
    assert (len(error.code), len(error.message), error.traceback) == (64, 4000, "t" * 20_000)


def test_a_machine_with_very_many_accelerators_is_not_refused() -> None:
    gpus = tuple(GPU.model_copy(update={"index": i}) for i in range(50_000))
    assert len(Resources(gpus=gpus).gpus) == MAX_GPUS
    assert Resources.model_validate({"gpus": [g.model_dump() for g in gpus[:65]]}).gpus == gpus[:MAX_GPUS]


def test_the_names_of_a_results_metrics_are_cut_and_their_number_is_bounded() -> None:
    with pytest.raises(ValidationError, match="100"):
        Result(assignment_id="a", fence=1, samples=1, metrics={str(i): 0.0 for i in range(101)})
    named = Result(assignment_id="a", fence=1, samples=1, metrics={"n" * 40_000: 1.0, "loss": NAN}).metrics
    assert list(named) == ["n" * 100, "loss"]
    assert math.isnan(named["loss"])


@pytest.mark.parametrize(
    "changes",
    [
        *({"epochs": v} for v in (1e308, 5e-324, INF, NAN)),
        *({name: v} for name in ("rounds", "round_samples", "batch_samples") for v in (2**63, 10**30)),
        *({name: 10**30} for name in ("seed", "min_clients", "max_clients", "max_retries", "keep_every")),
        *({name: v} for name in ("longest_round_seconds",) for v in (1e308, 5e-324, NAN, INF)),
        {"over_provision": NAN},
        {"quorum": NAN},
        {"gather_seconds": INF},
        *({"outer": {"options": {"lr": v}}} for v in (INF, NAN, 10**400)),
        {"outer": {"options": {"betas": (0.9, NAN)}}},
        {"outer": {"options": {"\udc00": 1.0}}},
    ],
)
def test_a_recipe_with_a_number_that_nothing_can_be_computed_with_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"rounds": 1} | changes)


def test_the_usual_numbers_pass() -> None:
    recipe = Recipe(epochs=1e9, rounds=2**53, longest_round_seconds=0.01, gather_seconds=0, seed=2**63 - 1)
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    OuterOptimizer(name="adam", options={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": True})
    Requirements(tags=("gpu",), clients=("lab",), ram_bytes=2**40)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"a": {"b": [1, NAN]}}, r"config\.a\.b\[1\] is nan"),
        ({"a": 2**64}, "64 bits"),
        ({"a": 10**400}, "64 bits"),
        ({"a": "\udc00"}, "surrogate"),
        ({"\udc00": 1}, "surrogate"),
        ({"a": {1: 2}}, "is a int"),
        ({"a": b"x"}, "is a bytes"),
        ({"a": nested(64)}, "inside each other"),
        ({"a": nested(1000)}, "inside each other"),
    ],
)
def test_a_config_that_no_client_could_be_sent_is_refused_by_its_place(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(bounds.Config).validate_python(config)


def test_a_config_as_deep_as_allowed_passes() -> None:
    config = {"a": nested(63), "b": [True, None, -(2**63), 2**64 - 1, 0.5, "ü"]}
    assert TypeAdapter(bounds.Config).validate_python(config) == config


def test_a_view_says_what_json_has_no_number_for_and_reads_it_again() -> None:
    view = TaskView(
        task_id="t",
        name="n",
        submitter="s",
        state="running",
        why="",
        priority=5,
        mode="weights",
        round=1,
        rounds_total=2,
        epoch=0,
        clients=1,
        samples_done=1,
        samples_per_second=1.0,
        loss=INF,
        metrics={"a": NAN, "b": -INF, "c": 1.0},
    )
    told = json.loads(view.model_dump_json())
    assert (told["loss"], told["metrics"]) == ("Infinity", {"a": "NaN", "b": "-Infinity", "c": 1.0})
    assert TaskView.model_validate(told).loss == INF
    assert repr(TaskView.model_validate(told).metrics) == repr(view.metrics)


def test_what_an_older_farm_says_of_a_metric_that_is_no_number_is_understood() -> None:
    """It said null: `farm show` called it a farm that it does not understand."""
    for name, model in vars(rest).items():
        if isinstance(model, type) and issubclass(model, BaseModel) and "metrics" in model.model_fields:
            adapter = TypeAdapter(model.model_fields["metrics"].rebuild_annotation())
            assert math.isnan(adapter.validate_python({"loss": None})["loss"]), name
