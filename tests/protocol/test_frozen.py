"""A record that is made unchecked is the one that its class makes, for values that the class would take."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from protocol.assignments import Assign, Slice
from protocol.codec import decode, encode
from protocol.frozen import Frozen, unchecked
from tests.protocol import samples

WHOLE = next(message for message in samples.SAMPLES if isinstance(message, Assign))


def test_it_is_the_record_that_the_class_makes() -> None:
    fields = {name: getattr(WHOLE, name) for name in Assign.model_fields}
    made = unchecked(Assign)(**fields)
    assert made == WHOLE
    assert type(made) is Assign
    assert made.samples == WHOLE.samples
    assert encode(made) == encode(WHOLE)
    assert decode(encode(made)) == WHOLE


def test_what_is_not_said_has_its_default_and_comes_in_the_same_order() -> None:
    required = {name: getattr(WHOLE, name) for name, field in Assign.model_fields.items() if field.is_required()}
    made, checked = unchecked(Assign)(**required), Assign(**required)
    assert made == checked
    assert encode(made) == encode(checked)
    assert repr(made) == repr(checked)


def test_it_is_as_immutable_and_no_two_share_anything() -> None:
    make = unchecked(Slice)
    one, two = (make(shard=WHOLE.slices[0].shard, start=start, stop=9) for start in (0, 1))
    with pytest.raises(ValidationError, match="frozen"):
        one.start = 5  # type: ignore[misc]
    assert (one.start, two.start) == (0, 1)
    assert one.model_copy(update={"start": 1}) == two


def test_values_are_not_looked_at() -> None:
    made = unchecked(Slice)(shard=WHOLE.slices[0].shard, start=-1, stop=0)
    with pytest.raises(ValidationError):
        Slice.model_validate(made.model_dump())


def test_defaults_that_are_made_for_each_record_are_refused() -> None:
    class Listed(Frozen):
        names: list[str] = Field(default_factory=list)

    with pytest.raises(TypeError, match="makes a default for each record: names"):
        unchecked(Listed)
