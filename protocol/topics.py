"""What a task is about, in its submitter's words: what owners choose by."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from protocol.bounds import MAX_TAGS, Word


def _one_word(text: str) -> str:
    """Write it in small letters: an owner and a submitter who mean the same write the same."""
    word = text.strip().lower()
    if not word or "," in word or any(char.isspace() for char in word):
        raise ValueError(f"a topic is one word, such as science, not {text!r}")
    return word


def _each_once(topics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(topics)))


Topic = Annotated[Word, AfterValidator(_one_word)]
Topics = Annotated[tuple[Topic, ...], Field(max_length=MAX_TAGS), AfterValidator(_each_once)]
"""Sorted, each once."""
