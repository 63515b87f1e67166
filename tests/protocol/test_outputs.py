"""The blob of a part's outputs: what is joined comes apart again, and its head says what it holds."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.outputs import MalformedOutputs, check_head, head_bytes, join_outputs, split_outputs


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_outputs_come_apart_as_they_were_joined(outputs: list[bytes]) -> None:
    data = join_outputs(outputs)
    assert list(split_outputs(data, len(outputs))) == outputs
    check_head(data[: head_bytes(len(outputs))], len(data), len(outputs))


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(0, 30))
def test_outputs_of_another_number_of_items_are_refused(outputs: list[bytes], items: int) -> None:
    if items == len(outputs):
        return
    with pytest.raises(MalformedOutputs):
        split_outputs(join_outputs(outputs), items)


@pytest.mark.parametrize(
    "data", [b"", b"farmout1", b"farmout2" + join_outputs([b"a"])[8:], join_outputs([b"a"]) + b"x"]
)
def test_what_is_no_blob_of_outputs_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedOutputs):
        split_outputs(data, 1)


@given(st.binary(max_size=64), st.integers(0, 10))
def test_any_bytes_are_outputs_or_refused(data: bytes, items: int) -> None:
    with suppress(MalformedOutputs):
        assert len(list(split_outputs(data, items))) == items
