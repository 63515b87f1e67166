"""Which failures are the same one, and how much is kept of each."""

from __future__ import annotations

import pytest

from protocol.failed_steps import error_line, largest_failed_step_bytes


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("train.py:12, in loss: RuntimeError: shapes 3 and 4", "train.py:12, in loss"),
        ("nets/model.py:7: NameError: name 'x' is not defined", "nets/model.py:7"),
        ("train.py:3, in the loss's backward pass: RuntimeError: a: b", "train.py:3, in the loss's backward pass"),
        ("the loss is nan at step 17 of the round: lower it", "the loss is nan at step N of the round: lower it"),
        ("one\ntwo", "one"),
        ("", ""),
    ],
)
def test_the_line_is_the_place_or_the_message_without_its_numbers(message: str, line: str) -> None:
    assert error_line(message) == line


def test_two_failures_at_one_place_have_one_line() -> None:
    assert error_line("t.py:5, in loss: ValueError: row 17") == error_line("t.py:5, in loss: ValueError: row 99")
    assert error_line("t.py:5, in loss: ValueError: x") != error_line("t.py:6, in loss: ValueError: x")


def test_a_line_fits_where_texts_are_bounded() -> None:
    assert len(error_line("x" * 5000)) == 200
    assert len(error_line(f"{'x' * 5000}.py:3, in loss: ValueError")) == 200


def test_a_small_model_has_room_for_its_batch_and_a_large_one_for_adam() -> None:
    assert largest_failed_step_bytes(0) == 256 * 1024**2
    assert largest_failed_step_bytes(10**9) == 4 * 10**9
