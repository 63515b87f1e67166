"""Decisions as programs: what the tree says is what the machine answers, however far a jump is."""

from __future__ import annotations

import struct
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sandbox.bpf import (
    MAX_INSTRUCTIONS,
    NUMBER,
    Compare,
    Comparison,
    Decision,
    LoadWord,
    Return,
    argument,
    assemble,
    by_range,
    one_of,
)
from tests.farm_client.sandbox.bpf_machine import evaluate

WORDS = st.integers(0, 0xFFFFFFFF)


def the_tree_itself(decision: Decision, words: dict[int, int], loaded: int = 0) -> int:
    """Walk the tree: what the program must answer."""
    match decision:
        case Return(value):
            return value
        case LoadWord(offset, then, mask):
            return the_tree_itself(then, words, words[offset] & mask)
        case Compare(how, constant, yes, no):
            holds = {
                Comparison.EQUAL: loaded == constant,
                Comparison.AT_LEAST: loaded >= constant,
                Comparison.HAS_ANY_BIT: loaded & constant != 0,
            }[how]
            return the_tree_itself(yes if holds else no, words, loaded)


FEW = st.sampled_from([0, 1, 2, 3, 0x80000000, 0xFFFFFFFF])
MASKS = st.sampled_from([3, 0xFFFFFFFF])
TREES: st.SearchStrategy[Decision] = st.recursive(
    st.builds(Return, FEW),
    lambda tree: st.one_of(
        st.builds(LoadWord, st.sampled_from([NUMBER, argument(0), argument(5)]), tree, MASKS),
        st.builds(Compare, st.sampled_from(list(Comparison)), FEW, tree, tree),
    ),
    max_leaves=40,
)


@given(TREES, FEW, FEW, FEW)
def test_a_program_answers_what_its_tree_says(tree: Decision, number: int, first: int, last: int) -> None:
    words = {NUMBER: number, argument(0): first, argument(5): last}
    program = assemble(LoadWord(NUMBER, tree))
    assert evaluate(program, number, [first, 0, 0, 0, 0, last]) == the_tree_itself(tree, words, number)


@given(st.sets(WORDS, max_size=600), WORDS)
def test_a_range_is_found_however_many_there_are(starts: set[int], word: int) -> None:
    """600 ranges put the halves of the search beyond what a comparison can jump."""
    ordered = sorted(starts | {0})
    program = assemble(LoadWord(NUMBER, by_range([(start, Return(at)) for at, start in enumerate(ordered)])))
    for number in (word, ordered[len(ordered) // 2], ordered[-1], max(ordered[-1] - 1, 0)):
        assert evaluate(program, number) == bisect_right(ordered, number) - 1


@pytest.mark.parametrize("values", [(), (7,), (7, 9, 0xFFFFFFFF)])
def test_one_of_is_membership(values: tuple[int, ...]) -> None:
    program = assemble(LoadWord(argument(1), one_of(values, Return(1), Return(0))))
    for value in (0, 7, 8, 9, 0xFFFFFFFF):
        assert evaluate(program, 0, [99, value]) == (value in values)


def test_an_argument_is_its_low_half() -> None:
    program = assemble(LoadWord(argument(2), one_of((5,), Return(1), Return(0))))
    assert evaluate(program, 0, [0, 0, 5 | 1 << 40]) == 1


@pytest.mark.parametrize(("length", "jumps"), [(255, [(0x15, 255, 0)]), (256, [(0x15, 0, 1), (0x05, 0, 0)])])
def test_a_comparison_jumps_255_at_most(length: int, jumps: list[tuple[int, int, int]]) -> None:
    """One instruction further takes the long way: a jump of its own."""
    no = Return(0)
    for _ in range(length - 1):
        no = LoadWord(NUMBER, no)  # type: ignore[assignment]
    program = assemble(Compare(Comparison.EQUAL, 1, Return(1), no))
    code = list(struct.iter_unpack("<HBBI", program))
    assert [instruction[:3] for instruction in code[: len(jumps)]] == jumps
    assert evaluate(program, 0) == 0


def test_a_program_longer_than_the_kernel_takes_is_refused() -> None:
    """A range is a comparison and a return, and the widest comparisons have a jump beside them."""
    ranges = [(start, Return(start)) for start in range(MAX_INSTRUCTIONS // 2)]
    assert 8 * 4000 < len(assemble(by_range(ranges[:2010]))) <= 8 * MAX_INSTRUCTIONS
    with pytest.raises(ValueError, match="4096"):
        assemble(by_range(ranges))
