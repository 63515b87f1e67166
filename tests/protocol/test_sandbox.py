"""The ladder of sandboxes, and what a server reads of one that a client of another age has."""

from __future__ import annotations

import itertools

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.codec import decode, encode
from protocol.messages import Hello
from protocol.sandbox import Rung, Sandbox, proven_rung
from tests.protocol.samples import BY_TYPE

RUNGS = st.sampled_from(Rung)


def hello_with(**fields: object) -> Hello:
    """Return what a server reads of a hello that has these fields besides the sample's."""
    message = decode(msgpack.packb(msgpack.unpackb(encode(BY_TYPE["hello"])) | fields))
    assert isinstance(message, Hello)
    return message


def test_the_ladder_from_its_top() -> None:
    assert [rung.value for rung in Rung] == ["strict", "landlock", "container", "none"]
    assert all(higher.holds(lower) for higher, lower in itertools.combinations(Rung, 2))


@given(RUNGS, RUNGS, RUNGS)
def test_holds_is_a_total_order(one: Rung, other: Rung, third: Rung) -> None:
    assert one.holds(one)
    assert one.holds(other) or other.holds(one)
    assert not (one.holds(other) and other.holds(one)) or one is other
    assert not (one.holds(other) and other.holds(third)) or one.holds(third)


@given(RUNGS)
def test_what_no_probe_tried_counts_as_nothing(rung: Rung) -> None:
    assert Sandbox(rung=rung).proven is Rung.NONE
    assert proven_rung(Sandbox(rung=rung, probes=1)) is rung


@pytest.mark.parametrize(
    ("sandbox", "label"),
    [
        (Sandbox(rung=Rung.STRICT, probes=2), "strict"),
        (Sandbox(rung=Rung.CONTAINER), "container (untried)"),
        (Sandbox(rung=Rung.NONE), "none"),
    ],
)
def test_what_a_sandbox_is_called(sandbox: Sandbox, label: str) -> None:
    assert sandbox.label == label


def test_a_client_that_is_older_than_sandboxes_has_none() -> None:
    hello = hello_with(sandbox=None)
    assert hello.sandbox is None
    assert proven_rung(hello.sandbox) is Rung.NONE


@given(st.text(max_size=200).filter(lambda word: word not in set(Rung)))
def test_a_rung_that_only_newer_clients_have_is_none(word: str) -> None:
    hello = hello_with(sandbox={"rung": word, "probes": 3, "engine": "new"})
    assert hello.sandbox == Sandbox(rung=Rung.NONE, probes=3)


@pytest.mark.parametrize("rung", [None, 1, ["strict"], {"rung": "strict"}])
def test_what_is_no_word_is_no_rung(rung: object) -> None:
    with pytest.raises(ValidationError, match="rung"):
        Sandbox.model_validate({"rung": rung})


@given(st.sampled_from([-1, 2**63, 10**400, 0.5]))
def test_the_version_of_the_probes_is_bounded(probes: float) -> None:
    with pytest.raises(ValidationError, match="probes"):
        Sandbox.model_validate({"rung": "strict", "probes": probes})
