"""Every verb and option with odd values: the documented exit codes, one line on stderr, one envelope; no traceback."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import typer.main

from farm_client.cli import local_training
from farm_client.cli.app import app
from farm_client.cli.exit_codes import ExitCode
from farm_client.cli.localfarm import DaemonFailed
from farm_client.executor.rehearsal_records import RehearsalReport
from farm_client.sdk import check
from protocol.digests import digest_bytes
from protocol.rest import EventView, LogView, MetricView
from tests.farm_client.cli.fake_farm import make_checkpoint, make_task

VERBS = typer.main.get_group(app).commands
NEEDS = {
    "FILE_OR_DIR": "train.py",
    "TASK": "digits",
    "URL": "http://t0ken@farm.test:8470",
    "[DIR]": "new",
    "N": "5",
    "SWEEP": "nosuch.toml",
}
NO_ROLES = {"roles": "{}", "tied": "{}"}
ODD = {
    "empty": "",
    "blank": " ",
    "minus one": "-1",
    "zero": "0",
    "not a number": "nan",
    "infinite": "inf",
    "negative infinity": "-inf",
    "near the largest float": "1e308",
    "beyond int64": "9" * 30,
    "more digits than int() takes": "9" * 5000,
    "long": "x" * 5000,
    "longer than any value": "x" * 200_000,
    "not utf-8": "caf\udce9",
    "a NUL": "a\0b",
    "several lines": "a\nb\r\nc",
    "escapes": "\x1b]0;title\x07\x1b[2J",
    "bidirectional": "\u202eabc",
    "emoji": "🙂",
    "markup": "[/]",
    "an open tag": "[red]",
    "a device": "device",
    "a folder": "folder",
    "a pipe": "pipe",
    "no file": "nosuch/file.npz",
    "an equals sign": "=",
    "dots": "a.b.c=" + "[" * 3000,
    "deep dots": "a." * 3000 + "b=1",
    "an option": "--json",
    "a round of": "digits@99999999999999999999999",
}


def option_names() -> list[tuple[str, str]]:
    """Return each verb with each of its parameters, as an option's name or an argument's metavar."""
    found = []
    for name, command in VERBS.items():
        for parameter in command.params:
            takes_value = parameter.param_type_name == "argument" or not getattr(parameter, "is_flag", False)
            if takes_value:
                shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
                found.append((name, shown))
    return found


SHARED = {shown for name, shown in option_names() if name == "submit"}
"""Those of `run` and `sweep` are the same record's; once is enough."""


def command_line(verb: str, parameter: str, value: str) -> list[str]:
    """Return a command line that is fine but for this value."""
    arguments = [
        value if parameter == argument.metavar else NEEDS[argument.metavar]
        for argument in VERBS[verb].params
        if argument.param_type_name == "argument" and (argument.required or parameter == argument.metavar)
    ]
    if verb in {"submit", "run"} and parameter not in {"--data", "--samples"}:
        arguments += ["--data", "data.npz"]
    if parameter.startswith("--"):
        arguments.append(f"{parameter}={value}")
    return [verb, *arguments, "--json"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake) -> Path:
    """A folder with a task, a farm that is done with its own, and no process that is really started."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("def build_model(config): ...\n")
    np.savez("data.npz", x=np.ones((40, 2), np.float32))
    Path("folder").mkdir()
    os.mkfifo("pipe")
    # Links, never the devices by their own names: who runs this as root would lose them to a mistake in `farm pull`.
    Path("device").symlink_to("/dev/zero")
    weights = safetensors.numpy.save(
        {"w": np.ones(2, np.float32)}, {"format": "aifarm-weights-1", "roles": "{}", "tied": "{}"}
    )
    Path("weights").write_bytes(weights)
    report = RehearsalReport(
        weights_path=str(tmp_path / "weights"),
        weights_digest=digest_bytes(weights),
        weights_bytes=len(weights),
        loss=0.5,
    )
    monkeypatch.setattr(check, "_run_process", lambda _request, _folder: (report, ""))

    @contextmanager
    def no_farm(*_arguments: object):
        def complete(_volunteers: int):
            raise DaemonFailed("no process is started here")

        yield complete

    monkeypatch.setattr(local_training, "launched_farm", no_farm)
    fake.tasks = [make_task(state="completed")]
    fake.blobs = {digest_bytes(weights): weights}
    fake.model_digest = digest_bytes(weights)
    fake.checkpoints = [make_checkpoint(3, digest=digest_bytes(weights), size_bytes=len(weights), newest=True)]
    fake.events = [EventView(seq=1, at=0, task_id="abcd2345", kind="x", message="m")]
    fake.logs = [
        LogView(seq=1, at=0, client_id="i", client_name="laptop", round=1, stream="stdout", text="t"),
    ]
    fake.metrics = [MetricView(seq=1, at=0, round=1, step=0, name="loss", value=1.0, source="eval")]
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_odd_values_are_taken_or_refused_in_a_line(farm, workplace: Path, verb: str) -> None:
    names = [name for of, name in option_names() if of == verb and not (verb in {"run", "sweep"} and name in SHARED)]
    for parameter, value in product(names, ODD.values()):
        line = command_line(verb, parameter, value)
        outcome = farm(*line)
        assert outcome.exit_code in set(ExitCode), (line, outcome)
        assert "Traceback" not in outcome.stderr, (line, outcome)
        envelopes = [json.loads(text) for text in outcome.stdout.splitlines() if text.startswith("{")]
        errors = [envelope["data"] for envelope in envelopes if envelope["kind"] == "error"]
        if outcome.exit_code == ExitCode.OK:
            assert not errors, (line, outcome)
            continue
        assert [error["exit_code"] for error in errors] == [outcome.exit_code], (line, outcome)
        assert errors[0]["code"] != "internal_error", (line, outcome)
        complaints = [text for text in outcome.stderr.splitlines() if text.startswith("farm: ")]
        assert len(complaints) == 1, (line, outcome)


def test_every_verb_is_walked() -> None:
    assert {name for name, _ in option_names()} == set(VERBS)
    assert len(option_names()) > 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "--nosuch"], "No such option"),
        (["nosuchverb"], "No such command"),
        (["show"], "Missing argument 'TASK'"),
        (["submit", "train.py", "--seed", "many"], "'--seed'"),
        (["submit", "train.py", "--name", "n" * 5000], "task.name: String should have at most 200 characters"),
        (["submit", "train.py", "--submit-token", "t" * 1000], "at most 200"),
        (["submit", "train.py", "--epochs", "inf"], "recipe.epochs: "),
        (["submit", "train.py", "--epochs", "nan"], "'--epochs'"),
        (["submit", "train.py", "--name", "\udcff"], "--name is not UTF-8"),
        (["wait", "digits", "--timeout", "nan"], "'--timeout'"),
    ],
)
def test_wrong_usage_is_one_line_and_one_envelope(farm, workplace: Path, arguments: list[str], said: str) -> None:
    outcome = farm(*arguments, "--json")
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("farm: ")
    assert said in line
    assert outcome.envelope("error")["message"] == line.removeprefix("farm: ")


def test_common_options_may_stand_before_the_verb(farm) -> None:
    assert farm("--json", "--farm", "http://t0ken@farm.test:8470", "ls", environ={"FARM_URL": ""}).envelope("tasks")
    assert farm("--farm=http://wrong@farm.test:8470", "ls").exit_code == ExitCode.NO_FARM


def test_a_name_that_is_not_utf8_is_no_code(farm, workplace: Path) -> None:
    Path("task").mkdir()
    Path("task/train.py").write_text("")
    Path("task/caf\udce9.txt").write_text("")
    outcome = farm("submit", "task", "--data", "data.npz", "--json")
    assert outcome.exit_code == ExitCode.FAILURE
    assert "'task/caf\\udce9.txt' is not UTF-8: rename" in outcome.envelope("error")["message"]


def test_a_model_takes_no_devices_place(farm, workplace: Path) -> None:
    for place in ("device", "folder", "pipe"):
        assert "is a folder, a device or a pipe" in farm("pull", "digits", "-o", place).stderr
