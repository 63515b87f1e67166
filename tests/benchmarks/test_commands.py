"""``python -m benchmarks``: what it says to arguments that make no sense, and how failures end."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.report import report, whole_numbers


@dataclass(frozen=True)
class Found(Measurement):
    share: float
    curve: list[float]
    kinds: dict[str, float]


def failing() -> Found:
    raise BenchmarkError("the farm is on fire")


def test_a_record_prints_its_numbers_to_four_digits():
    line = Found("x", 1 / 3, [2 / 3, 1.0], {"a": 12345.678}).to_json()
    assert json.loads(line) == {"benchmark": "x", "share": 0.3333, "curve": [0.6667, 1.0], "kinds": {"a": 12350.0}}


def test_the_machine_comes_first(capsys):
    report([lambda: Found("x", 0.5, [], {})])
    machine, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert (machine["benchmark"], found["benchmark"]) == ("machine", "x")


def test_a_failure_is_one_line_and_exit_code_1(capsys):
    with pytest.raises(typer.Exit) as end:
        report([failing, failing])
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == "error: the farm is on fire\n"


@pytest.mark.parametrize(("text", "numbers"), [("2,8", [2, 8]), ("1e5,1e7", [100_000, 10_000_000])])
def test_lists_of_numbers(text, numbers):
    assert whole_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "two", "0", "1.5", "-3"])
def test_other_lists_are_refused(text):
    with pytest.raises(typer.BadParameter):
        whole_numbers(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["rounds", "--clients", "none"],
        ["rounds", "--mode", "sideways"],
        ["memory", "--params", "-1"],
        ["memory", "--rounds", "0"],
        ["churn", "--seconds", "1"],
        ["goodput", "--clients", "0"],
        ["recovery", "--victim", "bystander"],
        ["idle", "--clients", "0"],
        ["comeback", "--kills", "0"],
        ["transitions", "--writers", "1.5"],
        ["fold", "--codec", "zip"],
        ["fold", "--rows", "0"],
    ],
)
def test_senseless_arguments_are_refused_before_anything_starts(arguments):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert not done.stdout
