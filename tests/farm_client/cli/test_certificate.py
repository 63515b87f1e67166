"""`farm certificate`: fetched, drawn, checked without a farm."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import httpx
import pytest

from farm_client.cli.certificate_picture import picture
from farm_client.cli.exit_codes import ExitCode
from protocol.certificate import TaskContribution, public_key_of, sign, to_file
from tests.farm_client.cli.fake_farm import problem
from tests.protocol.test_certificate import ONE, OTHER, SEED

SIGNED = sign(ONE, SEED)


@pytest.fixture
def gives(fake):
    def give(path: str) -> None:
        fake.overrides["GET", path] = lambda: httpx.Response(200, content=to_file(SIGNED))

    return give


def test_a_clients_certificate_is_written_and_drawn(farm, gives, tmp_path):
    gives("/v1/certificates/clients/id-laptop")
    file, drawn = tmp_path / "c.json", tmp_path / "c.svg"
    outcome = farm("certificate", "laptop", "-o", str(file), "--picture", str(drawn))
    assert outcome.exit_code == 0
    assert "client Ada's box gave barn 192 samples, 10.0 YFLOP, from 2026-11-01 to 2026-11-27" in outcome.stdout
    assert file.read_bytes() == to_file(SIGNED)
    assert drawn.read_text() == picture(SIGNED)


def test_a_removed_client_is_known_by_its_id(farm, gives, tmp_path):
    gives("/v1/certificates/clients/gone")
    assert farm("certificate", "gone", "-o", str(tmp_path / "c.json")).exit_code == 0


def test_a_teams_certificate(farm, gives, tmp_path):
    gives("/v1/certificates/teams/the reds")
    file = tmp_path / "c.json"
    data = farm("certificate", "--team", "the reds", "-o", str(file), "--json").envelope("certificate")
    assert (data["path"], data["certificate"]["flops"]) == (str(file), 10**25)


def test_what_the_farm_refuses_is_said(farm, fake, tmp_path):
    fake.overrides["GET", "/v1/certificates/teams/x"] = lambda: problem(
        404, "not_found", "no work of team x counts here"
    )
    outcome = farm("certificate", "--team", "x", "-o", str(tmp_path / "c.json"))
    assert outcome.exit_code == ExitCode.FAILURE
    assert "no work of team x" in outcome.stderr
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    "words", [[], ["laptop", "--team", "red"], ["laptop", "file"], ["laptop", "--key", "k"], ["verify"]]
)
def test_wrong_usage_says_what_to_give(farm, words):
    outcome = farm("certificate", *words)
    assert outcome.exit_code == ExitCode.USAGE
    assert "verify FILE" in outcome.stderr


def test_verify_needs_no_farm(farm, fake, tmp_path):
    file = tmp_path / "c.json"
    file.write_bytes(to_file(SIGNED))
    alone = farm("certificate", "verify", str(file))
    assert alone.exit_code == 0
    assert "compare it with the farm's" in " ".join(alone.stdout.split())
    known = farm("certificate", "verify", str(file), "--key", public_key_of(SEED), "--json")
    assert known.envelope("certificate_check")["key_given"] is True
    assert fake.sent() == []


def test_verify_finds_another_key_and_a_change(farm, tmp_path):
    file = tmp_path / "c.json"
    file.write_bytes(to_file(SIGNED))
    other = farm("certificate", "verify", str(file), "--key", public_key_of(OTHER))
    assert other.exit_code == ExitCode.FAILURE
    assert "another farm" in other.stderr
    document = json.loads(file.read_bytes())
    document["certificate"]["samples"] += 1
    file.write_text(json.dumps(document))
    changed = farm("certificate", "verify", str(file))
    assert changed.exit_code == ExitCode.FAILURE
    assert "changed" in changed.stderr
    file.write_bytes(b" " * (2**20 + 1))
    assert "too large" in farm("certificate", "verify", str(file)).stderr


def test_the_picture_is_whole_whatever_the_names_are():
    tasks = [
        TaskContribution(task_id=f"t{n}", name="<script>&\x1b[31m" * 9 if n else "", assignments=1, samples=5, flops=n)
        for n in range(7)
    ]
    odd = ONE.model_copy(update={"name": "<b>\x07" * 30, "tasks": tasks, "more_tasks": 3, "flops": 0})
    drawing = picture(sign(odd, SEED))
    texts = [one.text or "" for one in ET.fromstring(drawing).iter() if one.tag.endswith("text")]
    assert "and 5 other tasks" in texts
    assert any("gave computing time" in text for text in texts)
    assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    assert "\x1b" not in drawing
