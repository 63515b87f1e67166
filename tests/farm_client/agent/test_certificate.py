"""`farm-client certificate`: this machine's own, from the farm of the last join."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from farm_client.agent.certificate import fetch
from farm_client.agent.cli import app
from farm_client.agent.connection.address import parse_address
from farm_client.agent.errors import NoCertificate
from protocol.certificate import BadCertificate, from_file, sign, to_file
from tests.protocol.test_certificate import ONE, SEED

ADDRESS = parse_address("ws://join-token@farm.test:8470")


@pytest.fixture
def answers(monkeypatch):
    asked: list[tuple[str, dict[str, str]]] = []

    def give(answer: httpx.Response | httpx.HTTPError) -> list[tuple[str, dict[str, str]]]:
        def get(url: str, *, headers: dict[str, str], timeout: float) -> httpx.Response:
            assert timeout > 0
            asked.append((url, headers))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(httpx, "get", get)
        return asked

    return give


def test_it_is_asked_for_with_the_join_token_and_written(answers, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("FARM_JOIN_URL", "ws://join-token@farm.test:8470")
    asked = answers(httpx.Response(200, content=to_file(sign(ONE, SEED))))
    home, file = tmp_path / "home", tmp_path / "c.json"
    home.mkdir()
    outcome = CliRunner().invoke(app, ["certificate", "--home", str(home), "-o", str(file)])
    assert outcome.exit_code == 0, outcome.output
    assert "Ada's box gave barn 192 samples, 10.0 YFLOP" in outcome.output
    assert from_file(file.read_bytes()) == sign(ONE, SEED)
    outcome = CliRunner().invoke(app, ["certificate", "--home", str(home), "-o", str(file), "--json"])
    assert json.loads(outcome.stdout)["data"]["certificate"]["samples"] == 192
    (url, headers), again = asked
    assert url == again[0]
    assert url.startswith("http://farm.test:8470/v1/certificates/clients/")
    assert headers == {"Authorization": "Bearer join-token"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(404, json={"code": "not_found", "message": "no work counts"}), "no work counts"),
        (httpx.Response(502, content=b"<html>"), "it answers 502"),
        (httpx.Response(500, json=[]), "it answers 500"),
        (httpx.ConnectError("refused"), "does not answer"),
    ],
)
def test_why_there_is_none(answers, answer, said):
    answers(answer)
    with pytest.raises(NoCertificate, match=said):
        fetch(ADDRESS, "c1")


def test_what_is_no_certificate_is_refused(answers):
    answers(httpx.Response(200, content=b"<html>"))
    with pytest.raises(BadCertificate):
        fetch(ADDRESS, "c1")
