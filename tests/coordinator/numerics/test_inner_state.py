"""The mean of inner states: one alone comes out to the bit, several are averaged by samples, counts are the largest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.numerics.aggregate import EmptyRound
from coordinator.numerics.inner_state import InnerStateMean, first_bad
from protocol import codecs
from protocol.codecs import BytesReader, tensor_file
from protocol.errors import LayoutMismatch
from protocol.inner_state import METADATA_KEY, PREFIX


def state(tree: Any = None, **tensors: torch.Tensor) -> BytesReader:
    named = {f"{PREFIX}{name.replace('__', '/')}": tensor for name, tensor in tensors.items()}
    whole = {"dict": [["rest", tree], *([name, {"tensor": name}] for name in named)]}
    return BytesReader(b"".join(tensor_file(named | {"w": torch.ones(2)}, {METADATA_KEY: json.dumps(whole)})))


def rest(tree: Any) -> Any:
    return dict(map(tuple, tree["dict"]))["rest"]


def folded(*states: tuple[BytesReader, int]) -> tuple[dict[str, torch.Tensor], Any]:
    mean = InnerStateMean()
    for reader, samples in states:
        mean.fold(reader, samples)
    tensors, tree = mean.result()
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, rest(tree)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 10**9))
def test_one_state_alone_and_equal_ones_come_out_as_they_are(values: list[float], samples: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        own = torch.tensor(values, dtype=torch.float64).clamp(-1e38, 1e38).to(dtype)
        one = state({"tuple": [1, "x", 0.5]}, m=own)
        for states in ([(one, samples)], [(one, samples), (one, 3), (one, 7)]):
            tensors, tree = folded(*states)
            assert torch.equal(tensors["m"], own)
            assert tree == {"tuple": [1, "x", 0.5]}


@pytest.mark.parametrize("chunk", [2, 1 << 20])
def test_floats_are_averaged_by_samples_and_counts_are_the_largest(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr("coordinator.numerics.inner_state.CHUNK_ELEMENTS", chunk)
    assert chunk < codecs.CHUNK_ELEMENTS or chunk == 1 << 20
    one = state([3, 0.5, "a", True], m=torch.tensor([1.0, 2, 3]), p__step=torch.tensor(4.0), n=torch.tensor([5, 1]))
    other = state([2, 0.75, "b", True], m=torch.tensor([5.0, 2, -1]), p__step=torch.tensor(3.0), n=torch.tensor([2, 9]))
    tensors, tree = folded((one, 3), (other, 1))
    assert tensors["m"].tolist() == [2.0, 2.0, 2.0]
    assert tensors["p/step"] == 4
    assert tensors["n"].tolist() == [5, 9]
    assert tree == [3, 0.5, "a", True]
    assert folded((one, 1), (other, 3))[1] == [3, 0.75, "b", True], "of the heaviest, but for counts"
    assert folded((one, 2), (other, 2))[1] == [3, 0.5, "a", True], "the first of equals"


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), st.integers(1, 1000)), min_size=1, max_size=6
    )
)
def test_the_running_mean_is_the_weighted_mean(updates: list[tuple[list[float], int]]) -> None:
    tensors, _ = folded(*((state(m=torch.tensor(values, dtype=torch.float64)), n) for values, n in updates))
    total = sum(n for _, n in updates)
    expected = sum(torch.tensor(values, dtype=torch.float64) * n for values, n in updates) / total
    torch.testing.assert_close(tensors["m"], expected, rtol=1e-9, atol=1e-9)


def test_what_only_some_have_is_the_mean_of_theirs() -> None:
    one = state({"dict": [["a", 1], ["b", {"dict": [[0, 5]]}]]}, m=torch.ones(2))
    other = state({"dict": [["b", {"dict": [[0, 7], ["0", 2]]}]]}, late=torch.full((2,), 8.0))
    tensors, tree = folded((one, 1), (other, 1))
    assert tensors["m"].tolist() == [1, 1]
    assert tensors["late"].tolist() == [8, 8]
    assert tree == {"dict": [["a", 1], ["b", {"dict": [[0, 7], ["0", 2]]}]]}


def test_a_stale_state_weighs_less_and_a_round_begins_with_none() -> None:
    mean = InnerStateMean()
    with pytest.raises(EmptyRound):
        mean.result()
    mean.fold(state(m=torch.zeros(1)), 4)
    mean.fold(state(m=torch.full((1,), 3.0)), 4, 0.5)
    before, _ = mean.result()
    mean.reset()
    mean.fold(state(m=torch.full((1,), 9.0)), 4)
    assert before[f"{PREFIX}m"] == 1, "the last version's state stays while it is written"
    assert mean.result()[0][f"{PREFIX}m"] == 9
    with pytest.raises(EmptyRound):
        mean.fold(state(), 0)
    with pytest.raises(LayoutMismatch, match="F64"):
        mean.fold(state(m=torch.zeros(1, dtype=torch.float64)), 1)


def test_huge_numbers_of_either_sign_stay_finite_or_are_refused() -> None:
    largest = torch.finfo(torch.float32).max
    tensors, _ = folded((state(m=torch.tensor([largest])), 1), (state(m=torch.tensor([-largest])), 1))
    assert tensors["m"] == 0
    for value in (torch.inf, torch.nan, torch.finfo(torch.float64).max):
        bad = state(good=torch.ones(1), m=torch.tensor([0.0, value], dtype=torch.float64))
        assert first_bad(bad) == f"{PREFIX}m"
    assert first_bad(state(m=torch.ones(3), n=torch.ones(2, dtype=torch.int64), none=torch.ones(0))) is None
