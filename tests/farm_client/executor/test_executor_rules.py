"""The executor's small rules: seeds, means, what may be reported, how a batch is counted, and the self-test."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.executor import selftest
from farm_client.executor.means import (
    MAX_METRICS,
    WeightedMeans,
    as_number,
    count_samples,
    describe_batch,
    remark,
    reportable,
)
from farm_client.executor.randomness import apart, seed_everything

CPU = torch.device("cpu")
DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),
    "python": random.random,
}


def draws(count: int = 3) -> list[list[float]]:
    return [[draw() for _ in range(count)] for draw in DRAWS.values()]


class TestRandomness:
    """Every generator that a task's code may draw from."""

    @pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
    def test_the_same_seed_gives_the_same_numbers_of_each(self, seed: int) -> None:
        seed_everything(seed, CPU)
        first = draws()
        draws(7)
        seed_everything(seed, CPU)
        assert draws() == first

    def test_another_seed_gives_others(self) -> None:
        seed_everything(1, CPU)
        first = draws()
        seed_everything(2, CPU)
        assert all(one != other for one, other in zip(first, draws(), strict=True))

    @pytest.mark.parametrize("inside", [0, 1, 5])
    def test_what_runs_apart_is_not_felt_afterwards(self, inside: int) -> None:
        seed_everything(7, CPU)
        undisturbed = draws() + draws()
        seed_everything(7, CPU)
        before = draws()
        with apart(3, CPU):
            draws(inside)
        assert before + draws() == undisturbed

    def test_what_runs_apart_draws_the_same_whenever_it_runs(self) -> None:
        found = []
        for drawn_before in (0, 4):
            draws(drawn_before)
            with apart(3, CPU):
                found.append(draws())
        assert found[0] == found[1]

    def test_an_error_apart_is_not_felt_either(self) -> None:
        seed_everything(7, CPU)
        undisturbed = draws()
        seed_everything(7, CPU)
        with pytest.raises(ZeroDivisionError), apart(3, CPU):
            1 / (draws(2) == [])
        assert draws() == undisturbed


_values = st.floats(-1e6, 1e6)
_batches = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abc"), _values, max_size=3), st.integers(1, 1000)), max_size=8
)


@given(batches=_batches)
def test_a_mean_is_that_of_all_samples_that_had_the_value(batches: list[tuple[dict[str, float], int]]) -> None:
    means = WeightedMeans()
    for values, samples in batches:
        means.add(values, samples)
    found = means.result()
    assert set(found) == {name for values, _ in batches for name in values}
    for name, mean in found.items():
        each = [(values[name], samples) for values, samples in batches if name in values]
        expected = math.fsum(value * samples for value, samples in each) / sum(samples for _, samples in each)
        assert math.isclose(mean, expected, rel_tol=1e-9, abs_tol=1e-6)
        assert min(v for v, _ in each) - 1e-6 <= mean <= max(v for v, _ in each) + 1e-6


def test_means_do_not_depend_on_how_samples_are_cut_into_batches() -> None:
    together, apart_ = WeightedMeans(), WeightedMeans()
    together.add({"loss": 0.25}, 64)
    for _ in range(4):
        apart_.add({"loss": 0.25}, 16)
    assert together.result() == apart_.result() == {"loss": 0.25}


class TestReportable:
    """What a message may carry of what the code logged; the rest is told in its log."""

    def test_what_is_no_number_is_left_out_with_a_note(self, capsys: pytest.CaptureFixture[str]) -> None:
        values = {"good": 1.0, "nan": math.nan, "inf": math.inf, "down": -math.inf}
        assert reportable(values, "metric") == {"good": 1.0}
        notes = capsys.readouterr().err.splitlines()
        assert sorted(notes) == [
            "note: metric 'down' is -inf and was left out",
            "note: metric 'inf' is inf and was left out",
            "note: metric 'nan' is nan and was left out",
        ]

    @pytest.mark.parametrize("count", [MAX_METRICS - 1, MAX_METRICS, MAX_METRICS + 1, 500])
    def test_the_first_so_many_are_kept(self, count: int, capsys: pytest.CaptureFixture[str]) -> None:
        values = {f"m{number}": float(number) for number in range(count)}
        kept = reportable(values, "metric")
        assert list(kept) == list(values)[:MAX_METRICS]
        assert ("too many" in capsys.readouterr().err) == (count > MAX_METRICS)

    def test_a_log_that_the_code_closed_costs_only_the_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        remark("nobody reads this")
        assert reportable({"nan": math.nan}, "metric") == {}


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0], requires_grad=True)])
def test_whatever_is_one_number_is_one(value: Any) -> None:
    assert as_number(value) == 2.0
    assert type(as_number(value)) is float


@pytest.mark.parametrize("value", [torch.zeros(2), "loss", None, [1.0]], ids=["two", "text", "none", "list"])
def test_what_is_not_one_number_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        as_number(value)


X = torch.zeros(5, 2)
BATCHES: dict[str, tuple[Any, int, str]] = {
    "tensor": (X, 5, "float32 [5, 2]"),
    "number": (torch.tensor(1), 1, "int64 []"),
    "pair": ((X, torch.zeros(5, dtype=torch.int64)), 5, "(float32 [5, 2], int64 [5])"),
    "named": ({"x": X, "y": X}, 5, "{x: float32 [5, 2], y: float32 [5, 2]}"),
    "nested": ({"in": (X,)}, 5, "{in: (float32 [5, 2])}"),
    "texts": (["a", "b", "c"], 3, "3 strings"),
    "text": ("abc", 1, "str"),
    "nothing": ({}, 1, "{}"),
    "empty": ([], 1, "0 strings"),
    "none": (None, 1, "NoneType"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_counted_and_described_by_its_first_dimension(name: str) -> None:
    batch, samples, words = BATCHES[name]
    assert count_samples(batch) == samples
    assert describe_batch(batch) == words


class TestSelfTest:
    """Does each device compute rightly? Known answers, exact to the bit."""

    @pytest.fixture(autouse=True)
    def _in_a_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(selftest, "_BENCH_SECONDS", 0.01)
        monkeypatch.setattr(selftest, "_BENCH_SIZE", 64)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def verdict(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        selftest.main()
        said = json.loads(capsys.readouterr().out)
        assert said["torch_version"] == torch.__version__
        (verdict,) = said["devices"]
        assert (verdict["device"], verdict["name"]) == ("cpu", "CPU")
        return dict(verdict)

    def test_a_good_device_passes_and_is_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        verdict = self.verdict(capsys)
        assert verdict["reason"] == ""
        assert verdict["gflops"] > 0

    @pytest.mark.parametrize("wrong", [torch.float32, torch.float64])
    def test_a_single_wrong_element_is_seen(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: torch.dtype
    ) -> None:
        matmul = torch.Tensor.__matmul__

        def failing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            product = matmul(left, right)
            if product.dtype == wrong and product.ndim == 2:
                product[200, 17] += 1
            return product

        monkeypatch.setattr(torch.Tensor, "__matmul__", failing)
        verdict = self.verdict(capsys)
        assert verdict["reason"] == f"a matrix product in {wrong} came out wrong"
        assert verdict["gflops"] == 0.0

    def test_memory_that_fails_only_sometimes_is_seen(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        matmul, calls = torch.Tensor.__matmul__, []

        def failing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            calls.append(left)
            return matmul(left, right) + (1 if len(calls) == 7 else 0)

        monkeypatch.setattr(torch.Tensor, "__matmul__", failing)
        assert "came out wrong" in self.verdict(capsys)["reason"]

    def test_a_wrong_gradient_is_seen(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backward = torch.Tensor.backward

        def failing(loss: torch.Tensor) -> None:
            backward(loss * 2)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(torch.Tensor, "backward", failing)
        assert self.verdict(capsys)["reason"] == "the gradient of a least-squares loss came out wrong"

    def test_a_device_that_raises_is_refused_in_its_first_line(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def raising(*_: Any) -> Any:
            raise RuntimeError("CUDA error: no kernel image\nCompile with TORCH_USE_CUDA_DSA")

        monkeypatch.setattr(torch, "from_numpy", raising)
        verdict = self.verdict(capsys)
        assert (verdict["reason"], verdict["gflops"]) == ("CUDA error: no kernel image", 0.0)
