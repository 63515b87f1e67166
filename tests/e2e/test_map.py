"""`farm map` on real processes: outputs in order, each once, as of a plain loop, whatever is killed meanwhile."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.mortal_farm import MortalFarm, mortal_farm
from farm_client import Farm
from farm_client.outputs import ItemError
from farm_client.sdk.outcome import TaskEnded
from tests.e2e.conftest import run_farm, wait_until

ROOT = Path(__file__).parents[2]

ITEMS = 600
CODE = """
import random, time

def setup(config):
    return int(config["factor"])

def map_item(item, config):
    time.sleep(0.01)
    return {"item": item, "value": item * config["setup"], "drawn": random.random()}
"""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalFarm]:
    with mortal_farm(tmp_path_factory.mktemp("farm"), 2) as running:
        yield running


def command(farm: MortalFarm, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "farm_client.cli.app", "map", "--farm", farm.farm_url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_outputs_are_those_of_the_plain_loop_though_server_and_client_are_killed(
    farm: MortalFarm, tmp_path: Path
) -> None:
    code, out = tmp_path / "double.py", tmp_path / "results.jsonl"
    code.write_text(CODE)
    arguments = ("--range", str(ITEMS), "--set", "factor=3", "--part", "20", "--out", str(out), "--patience", "60")
    mapping = command(farm, str(code), *arguments)
    try:
        wait_until(lambda: out.exists() and out.read_text().count("\n") >= 40, "there are outputs")
        farm.kill(farm.server)
        farm.kill(farm.clients["client-1"])
        farm.start_server()
        farm.start_client("client-1")
        stdout, stderr = mapping.communicate(timeout=120)
    finally:
        mapping.kill()
    assert mapping.returncode == 0, stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["item"], one["value"]) for one in found] == [(item, item * 3) for item in range(ITEMS)]
    assert len({one["drawn"] for one in found}) == ITEMS
    task = farm.api.tasks()[0]
    again = run_farm("results", task.task_id, "--from", str(ITEMS - 2), "--json", FARM_URL=farm.farm_url)
    assert [one["output"] for one in again.envelopes("output")] == found[-2:], "from any machine, later"
    assert task.samples_done == ITEMS
    assert sum(book.counted_samples for book in farm.api.shards(task.task_id)) == ITEMS
    assert not sum(book.repeated_samples for book in farm.api.shards(task.task_id))
    assert random.random() != found[0]["drawn"], stdout


def test_a_program_maps_rows_and_gets_each_output_in_order(farm: MortalFarm, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"n": n, "name": f"row {n}"}) + "\n" for n in range(50)))
    code = tmp_path / "rows.py"
    code.write_text(
        "def map_batch(batch, config):\n"
        "    if 13 in batch['n']:\n        raise ValueError('thirteen')\n"
        "    return [{'n': int(n), 'name': name} for n, name in zip(batch['n'], batch['name'])]\n"
    )
    with Farm(farm.farm_url) as program:
        found = list(program.map(code, data=rows, batch_items=4, on_error="skip", check=False))
        failing = program.map(code, data=rows, batch_items=4, on_error="stop", check=False)
        with pytest.raises(TaskEnded, match=r"rows.py:3.*thirteen.*\(item 13\)"):
            list(failing)
        saved = program.outputs(failing.task.id).from_item(0, follow_on=False)
        assert [one["n"] for one in saved] == list(range(12)), "what was done before it failed is there"
    assert [one for one in found if not isinstance(one, ItemError)] == [
        {"n": n, "name": f"row {n}"} for n in range(50) if n != 13
    ]
    assert isinstance(found[13], ItemError)
    assert "thirteen" in found[13].error


DEADLY = """
import os, signal

def map_item(item, config):
    if item == 23:
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == 37:
        raise ValueError("thirty-seven")
    return item
"""


def test_an_item_that_ends_its_executor_fails_alone(farm: MortalFarm, tmp_path: Path) -> None:
    code, out = tmp_path / "deadly.py", tmp_path / "results.jsonl"
    code.write_text(DEADLY)
    arguments = ("map", str(code), "--range", "60", "--part", "4", "--no-check", "--out", str(out))
    answer = run_farm(*arguments, FARM_URL=farm.farm_url)
    assert answer.exit_code == 1, answer.stderr
    assert "2 of 60 items failed" in answer.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one for one in found if isinstance(one, int)] == [item for item in range(60) if item not in {23, 37}]
    assert "killed by SIGSEGV" in found[23]["error"]
    assert "client-" in found[23]["error"], "it says on which clients"
    assert "thirty-seven" in found[37]["error"]
    task = farm.api.tasks()[0]
    assert (task.state, task.why) == ("completed", "mapped 60 items, of which 2 failed")


def test_the_example_estimates_pi(farm: MortalFarm, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    answer = run_farm(
        "map", str(ROOT / "examples/pi/estimate.py"), "--range", "200", "--out", str(out), FARM_URL=farm.farm_url
    )
    assert answer.exit_code == 0, answer.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["item"] for one in found] == list(range(200))
    assert abs(4 * sum(one["hits"] for one in found) / 2_000_000 - 3.14159) < 0.01
