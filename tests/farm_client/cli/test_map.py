"""`farm map` and `farm results`: wrong flags refused before anything is sent, outputs given in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm_client.cli.exit_codes import ExitCode
from farm_client.outputs import ItemError, pack_output
from protocol.digests import digest_bytes
from protocol.maps import FailedItemView, OutputList, OutputView
from protocol.outputs import join_outputs
from tests.farm_client.cli.fake_farm import FakeFarm, make_task

VALUES = [1, {"a": [2]}, ItemError(2, "ValueError: no")]
SAID = [1, {"a": [2]}, {"position": 2, "error": "ValueError: no", "traceback": ""}]


@pytest.fixture
def a_map(fake: FakeFarm) -> FakeFarm:
    data = join_outputs([pack_output(value) for value in VALUES])
    fake.blobs[digest_bytes(data)] = data
    view = OutputView(position=0, items=3, digest=digest_bytes(data), size_bytes=len(data))
    fake.outputs = OutputList(task_id="abcd2345", outputs=(view,), items=3, is_over=True)
    fake.tasks = [make_task(state="completed", mode="map", items_total=3, samples_done=3)]
    return fake


def test_outputs_are_lines_in_order(farm, a_map):
    answer = farm("results", "digits")
    assert [json.loads(line) for line in answer.stdout.splitlines()] == SAID
    assert [json.loads(line) for line in farm("results", "digits", "--from", "1").stdout.splitlines()] == SAID[1:]


def test_outputs_are_envelopes(farm, a_map):
    found = farm("results", "digits", "--json").envelopes("output")
    assert [(one["item"], one["output"]) for one in found] == list(enumerate(SAID))


def test_a_file_gets_them_all(farm, a_map, tmp_path):
    out = tmp_path / "r.jsonl"
    told = farm("results", "digits", "--follow", "--allow-failures", "1", "--out", str(out), "--json").envelope(
        "results"
    )
    assert told == {"task_id": "abcd2345", "items": 3, "failed": 1, "path": str(out)}
    assert [json.loads(line) for line in out.read_text().splitlines()] == SAID


def test_pulling_a_map_writes_its_results(farm, a_map, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert farm("pull", "digits").exit_code == ExitCode.OK
    assert Path("results.jsonl").read_text().count("\n") == 3


def test_who_follows_hears_how_it_ended(farm, a_map):
    answer = farm("results", "digits", "--follow", "--allow-failures", "1")
    assert "completed" in answer.stderr
    assert "3 items in" in answer.stderr
    assert "farm results abcd2345" in answer.stderr


def test_an_item_that_ended_executors_has_its_error_in_its_place(farm, a_map):
    killed = FailedItemView(position=3, error="the executor was killed by SIGSEGV", clients=("ada", "bob"))
    a_map.outputs = a_map.outputs.model_copy(update={"failed": (killed,), "items": 4})
    answer = farm("results", "digits", "--follow", "--allow-failures", "2")
    assert answer.exit_code == ExitCode.OK
    error = "the executor was killed by SIGSEGV (on ada, bob)"
    assert json.loads(answer.stdout.splitlines()[3]) == {"position": 3, "error": error, "traceback": ""}
    assert "2 of 4 items failed" in answer.stderr
    assert "item 2: ValueError: no" in answer.stderr
    assert f"item 3: {error}" in " ".join(answer.stderr.split())
    assert len(farm("results", "digits", "--from", "3").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("allowed", "code"),
    [((), 1), (("0",), 1), (("1",), 0), (("33.3%",), 1), (("34%",), 0), (("100%",), 0)],
)
def test_more_failures_than_allowed_are_an_error(farm, a_map, allowed, code):
    answer = farm("results", "digits", "--follow", *(("--allow-failures", *allowed) if allowed else ()))
    assert answer.exit_code == code
    assert ("--allow-failures allows" in answer.stderr) is bool(code)
    assert "completed" in answer.stderr


def test_what_is_there_so_far_is_no_error(farm, a_map):
    answer = farm("results", "digits")
    assert answer.exit_code == ExitCode.OK
    assert "1 of 3 items failed" in answer.stderr


def test_only_the_first_failures_are_listed(farm, a_map):
    failed = tuple(FailedItemView(position=3 + n, error="killed") for n in range(9))
    a_map.outputs = a_map.outputs.model_copy(update={"failed": failed, "items": 12})
    answer = farm("results", "digits")
    assert "10 of 12 items failed" in answer.stderr
    assert "and 5 more" in answer.stderr
    assert "item 7" not in answer.stderr


@pytest.mark.parametrize("text", ["-1", "many", "1.5", "101%", "%", ""])
def test_failures_that_can_not_be_allowed_are_refused(farm, a_map, text):
    answer = farm("results", "digits", "--follow", f"--allow-failures={text}")
    assert answer.exit_code == ExitCode.USAGE
    assert "--allow-failures" in answer.stderr


def test_failures_are_allowed_of_a_map_that_is_over(farm, a_map):
    answer = farm("results", "digits", "--allow-failures", "1")
    assert answer.exit_code == ExitCode.USAGE
    assert "--follow" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--range", "3", "--detach", "--out", "r.jsonl"), "--detach waits for no output"),
        (("--range", "3", "--detach", "--allow-failures", "1"), "--detach waits for no output"),
        (("--range", "3", "--allow-failures", "x"), "--allow-failures takes"),
        (("--range", "3", "--out", "r.txt"), "suffix"),
        (("--range", "3", "--set", "x"), "KEY=VALUE"),
        (("--range", "3", "--on-error", "perhaps"), "perhaps"),
        (("--range", "three"), "--range"),
        ((), "give one of them"),
        (("--range", "0"), "no item to map"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(farm, fake, tmp_path, arguments, says):
    code = tmp_path / "fn.py"
    code.write_text("def map_item(item, config):\n    return 1\n")
    answer = farm("map", str(code), *arguments)
    assert answer.exit_code != ExitCode.OK
    assert says in answer.stderr
    assert not fake.submitted
