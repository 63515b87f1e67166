"""Which work an owner wants done: a rule over kinds and topics, the same on client and server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from protocol.assignments import Kind, Reject, RejectCode
from protocol.topics import Topics
from protocol.wanted_work import ANY_WORK, WantedWork

WORDS = ("ads", "biology", "physics", "science")
_kinds = st.sampled_from(Kind)
_some = st.sets(st.sampled_from(WORDS)).map(lambda words: tuple(sorted(words)))


@given(kind=_kinds, topics=_some)
def test_who_chose_nothing_wants_anything(kind: Kind, topics: tuple[str, ...]) -> None:
    assert ANY_WORK.why_not(kind, topics) is None
    assert ANY_WORK.in_words() == {}


@given(kinds=st.sets(_kinds), kind=_kinds, topics=_some, wanted=_some, unwanted=_some)
def test_work_is_wanted_that_each_choice_allows(
    kinds: set[Kind], kind: Kind, topics: tuple[str, ...], wanted: tuple[str, ...], unwanted: tuple[str, ...]
) -> None:
    work = WantedWork(kinds=tuple(kinds), topics=wanted, not_topics=unwanted)
    is_wanted = (
        (not kinds or kind in kinds)
        and (not wanted or any(topic in wanted for topic in topics))
        and not any(topic in unwanted for topic in topics)
    )
    assert (work.why_not(kind, topics) is None) == is_wanted


def test_the_reason_names_what_is_wanted_and_what_this_is() -> None:
    work = WantedWork(kinds=("train", "a_newer_kind"), topics=("science",), not_topics=("ads",))
    assert work.why_not(Kind.EVALUATE, ()) == "its owner wants train, a_newer_kind done, not evaluate"
    assert work.why_not(Kind.TRAIN, ("science", "ads")) == "its owner wants nothing done about ads"
    assert work.why_not(Kind.TRAIN, ("physics",)) == "its owner wants work about science, and it is about physics"
    assert work.why_not(Kind.TRAIN, ()) == "its owner wants work about science, and it names no topic"
    assert work.in_words() == {
        "kinds of work": "train, a_newer_kind",
        "only topics": "science",
        "never topics": "ads",
    }


def test_topics_are_words_in_small_letters_each_once() -> None:
    read = TypeAdapter(Topics).validate_python
    assert read((" Science", "ads", "science")) == ("ads", "science")
    assert read(("größe",)) == ("größe",)


@pytest.mark.parametrize("topic", ["", "  ", "two words", "a,b", "a\x00b", "x" * 101])
def test_what_is_no_word_is_no_topic(topic: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Topics).validate_python((topic,))


def test_there_are_so_many_topics_at_most() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Topics).validate_python(tuple(f"t{number}" for number in range(33)))


def test_a_refusal_in_a_newer_clients_word_is_another_one() -> None:
    said = {"assignment_id": "a", "fence": 1, "message": "too dark"}
    assert Reject.model_validate({**said, "code": "moonless"}).code is RejectCode.OTHER
    assert [Reject.model_validate({**said, "code": code}).code for code in RejectCode] == list(RejectCode)
    with pytest.raises(ValidationError):
        Reject.model_validate({**said, "code": 5})
