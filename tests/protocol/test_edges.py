"""The edges of every type that comes from outside: the last value that passes, and the first that does not.

``docs/protocol.md`` and the JSON schema are written from the same bounds; here they are enforced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from protocol import bounds, rest
from protocol.codec import decode_entry
from protocol.errors import FarmError, MalformedFrame
from protocol.messages import MESSAGE
from protocol.recipe import Requirements
from protocol.rest import PriorityRequest
from protocol.rest_uploads import UploadRequest
from protocol.tasks import Dataset, Shard, Split
from tests.protocol.samples import BY_TYPE

BIG = 10**400
NUMBERS: dict[str, tuple[Any, float, float]] = {
    "Int64": (bounds.Int64, -(2**63), 2**63 - 1),
    "Natural": (bounds.Natural, 0, 2**63 - 1),
    "Count": (bounds.Count, 0, 2**53),
    "Positive": (bounds.Positive, 1, 2**53),
    "Bytes": (bounds.Bytes, 0, 2**60),
    "Cores": (bounds.Cores, 1, 2**20),
    "Clients": (bounds.Clients, 1, 10**6),
    "Version": (bounds.Version, 0, 2**16),
    "FrameBytes": (bounds.FrameBytes, 128, 2**31 - 1),
}
REALS: dict[str, tuple[Any, float, float]] = {
    "Seconds": (bounds.Seconds, 0.0, 1e9),
    "Interval": (bounds.Interval, 1e-3, 1e9),
    "Epochs": (bounds.Epochs, 1e-9, 1e9),
    "Share": (bounds.Share, 0.0, 1.0),
    "Rate": (bounds.Rate, 0.0, 1e12),
}
TEXTS: dict[str, tuple[Any, int, int]] = {
    "Title": (bounds.Title, 1, 200),
    "FilePath": (bounds.FilePath, 1, 1000),
    "TensorName": (bounds.TensorName, 0, 4000),
}
CUT: dict[str, tuple[Any, int]] = {
    "Code": (bounds.Code, 64),
    "Label": (bounds.Label, 100),
    "Text": (bounds.Text, 2000),
    "LongText": (bounds.LongText, 4000),
}


def takes(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_pass_up_to_both_edges(name: str) -> None:
    kind, low, high = NUMBERS[name]
    assert takes(kind, low)
    assert takes(kind, high)
    assert not takes(kind, low - 1)
    assert not takes(kind, high + 1)
    assert not any(takes(kind, odd) for odd in (BIG, -BIG, 1.5, math.nan, math.inf, None, "x"))


@pytest.mark.parametrize("name", REALS)
def test_real_numbers_pass_up_to_both_edges(name: str) -> None:
    kind, low, high = REALS[name]
    assert takes(kind, low)
    assert takes(kind, high)
    assert not takes(kind, math.nextafter(low, -math.inf))
    assert not takes(kind, math.nextafter(high, math.inf))
    assert not any(takes(kind, odd) for odd in (math.nan, math.inf, -math.inf, BIG, None, "x"))


@pytest.mark.parametrize("name", TEXTS)
def test_names_are_refused_beyond_their_length_never_cut(name: str) -> None:
    kind, low, high = TEXTS[name]
    assert takes(kind, "x" * low)
    assert takes(kind, "ü" * high), "characters are counted, not bytes"
    assert not takes(kind, "x" * (high + 1))
    assert low == 0 or not takes(kind, "")


@pytest.mark.parametrize("name", CUT)
def test_texts_for_people_are_cut_at_their_length_never_refused(name: str) -> None:
    kind, most = CUT[name]
    read = TypeAdapter(kind).validate_python
    assert read("x" * most) == "x" * most
    assert read("x" * (most + 1)) == "x" * most
    assert read("a\udc00b") == "a?b"
    assert read("") == ""


def test_of_a_traceback_the_end_is_kept() -> None:
    read = TypeAdapter(bounds.Traceback).validate_python
    assert read("first" + "x" * bounds.MAX_TRACEBACK_CHARS) == "x" * bounds.MAX_TRACEBACK_CHARS


@pytest.mark.parametrize("name", ["Title", "FilePath"])
def test_a_nul_character_names_nothing(name: str) -> None:
    assert not takes(TEXTS[name][0], "a\0b")


def required(model: type[BaseModel]) -> Iterator[str]:
    return (name for name, field in model.model_fields.items() if field.is_required())


@pytest.mark.parametrize("kind", BY_TYPE)
def test_a_message_without_a_field_that_it_needs_is_refused_by_that_field(kind: str) -> None:
    whole = BY_TYPE[kind].model_dump(exclude_none=True)
    for name in required(type(BY_TYPE[kind])):
        with pytest.raises(MalformedFrame, match=rf"{kind}: field {name}: Field required"):
            decode_entry({key: value for key, value in whole.items() if key != name})


@pytest.mark.parametrize("kind", BY_TYPE)
def test_what_is_said_of_a_message_is_its_and_no_other_field_is_wrong(kind: str) -> None:
    """A sample passes as it is, as Python's values and as JSON's; fields that a newer peer adds change nothing."""
    sample = BY_TYPE[kind]
    assert MESSAGE.validate_python(sample.model_dump()) == sample
    assert decode_entry(sample.model_dump() | {"from_the_future": [1, {"x": None}]}) == sample


def subclasses(of: type[FarmError]) -> Iterator[type[FarmError]]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


def test_each_error_has_a_code_of_its_own_that_fits_the_wire_and_a_sentence() -> None:
    shared = {  # by name: a test may have imported a module anew, and the first one's classes are still there
        (one.__module__, one.__qualname__): one
        for one in subclasses(FarmError)
        if one.__module__.startswith("protocol.")
    }.values()
    codes = [one.code for one in shared]
    assert len(set(codes)) == len(codes), "a peer tells errors apart by their codes"
    for one in shared:
        assert one.code.isascii()
        assert 0 < len(one.code) <= bounds.MAX_CODE_CHARS
        sentence = (one.__doc__ or "").strip()
        assert sentence[:1].isupper()
        assert sentence.endswith(".")


@pytest.mark.parametrize(("priority", "passes"), [(-1, False), (0, True), (9, True), (10, False)])
def test_priorities_go_from_nought_to_nine(priority: int, passes: bool) -> None:
    assert takes(PriorityRequest, {"priority": priority}) is passes


@pytest.mark.parametrize(
    ("seconds", "passes"), [(-0.1, False), (0, True), (30, True), (30.1, False), (math.nan, False)]
)
def test_an_answer_is_held_back_for_half_a_minute_at_most(seconds: float, passes: bool) -> None:
    assert takes(UploadRequest, {"size_bytes": 1, "wait_seconds": seconds}) is passes


def test_shards_are_numbered_without_a_gap_and_some_are_trained() -> None:
    shard = Shard(index=0, samples=1)
    for wrong in (
        (shard.model_copy(update={"index": 1}),),
        (shard, shard),
        (),
        (shard.model_copy(update={"split": Split.HOLDOUT}),),
        tuple(Shard(index=n, samples=2**53) for n in range(2)),
    ):
        assert not takes(Dataset, {"kind": "code", "shards": [one.model_dump() for one in wrong]})
    assert not takes(Dataset, {"kind": "files", "shards": [shard.model_dump()]}), "where is its file?"
    assert takes(Dataset, {"kind": "code", "shards": [shard.model_dump()]})


def test_requirements_are_of_tags_and_clients_that_can_be_named() -> None:
    most = tuple(f"tag{n}" for n in range(bounds.MAX_TAGS))
    assert takes(Requirements, {"tags": most})
    assert not takes(Requirements, {"tags": (*most, "one more")})


def test_every_view_of_the_api_ignores_what_a_newer_farm_adds() -> None:
    """An older `farm` must not fall over a field that it does not know."""
    views = [m for m in vars(rest).values() if isinstance(m, type) and issubclass(m, BaseModel) and get_args(m) == ()]
    assert {one.model_config.get("extra") for one in views if one.__module__ == rest.__name__} == {"ignore"}
