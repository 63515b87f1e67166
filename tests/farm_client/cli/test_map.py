"""`farm map` and `farm results`: wrong flags refused before anything is sent, outputs given in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm_client.cli.exit_codes import ExitCode
from farm_client.outputs import ItemError, pack_output
from protocol.digests import digest_bytes
from protocol.maps import OutputList, OutputView
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
    told = farm("results", "digits", "--follow", "--out", str(out), "--json").envelope("results")
    assert told == {"task_id": "abcd2345", "items": 3, "path": str(out)}
    assert [json.loads(line) for line in out.read_text().splitlines()] == SAID


def test_pulling_a_map_writes_its_results(farm, a_map, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert farm("pull", "digits").exit_code == ExitCode.OK
    assert Path("results.jsonl").read_text().count("\n") == 3


def test_who_follows_hears_how_it_ended(farm, a_map):
    answer = farm("results", "digits", "--follow")
    assert "completed" in answer.stderr
    assert "3 items in" in answer.stderr
    assert "farm results abcd2345" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--range", "3", "--detach", "--out", "r.jsonl"), "--detach waits for no output"),
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
