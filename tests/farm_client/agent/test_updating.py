"""`farm-client update --check` says what the package index has, or plainly that it could not be asked."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import pytest

from farm_client.agent import updating
from farm_client.agent.updating import check_for_update

HAS_PIP = importlib.util.find_spec("pip") is not None


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "version", lambda _package: "1.2.0")


def says(stdout: str = "", stderr: str = "", exit_code: int = 0) -> updating.Ask:
    def ask(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        assert command[-3:] == ("index", "versions", "aifarm")
        assert "FARM_TOKEN" not in environ
        return subprocess.CompletedProcess(command, exit_code, stdout, stderr)

    return ask


@pytest.mark.parametrize(
    ("versions", "newest", "words"),
    [
        ("1.2.0, 1.1.0", "1.2.0", "farm-client 1.2.0 is the newest"),
        ("1.10.0, 1.2.0", "1.10.0", "farm-client 1.10.0 is there, this is 1.2.0; install it with: "),
        ("1.1.0", "1.1.0", "this is farm-client 1.2.0, which the index does not have; its newest is 1.1.0"),
    ],
)
def test_what_the_index_has(versions: str, newest: str, words: str) -> None:
    found = check_for_update(says(f"aifarm ({newest})\nAvailable versions: {versions}\n"), {"FARM_TOKEN": "s3cret"})
    assert found.newest == newest
    assert found.in_words().startswith(words)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: x\nERROR: No matching distribution found for aifarm\n", "pip says: No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        ("", "pip did not say why"),
    ],
)
def test_why_it_could_not_be_asked(stderr: str, words: str) -> None:
    found = check_for_update(says(stderr=stderr, exit_code=1))
    assert found.newest is None
    assert words in found.in_words()


@pytest.mark.parametrize("error", [OSError("no such program"), subprocess.TimeoutExpired("pip", 60)])
def test_a_pip_that_cannot_be_run_is_told(error: Exception) -> None:
    def ask(_command: Sequence[str], _environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        raise error

    assert "pip could not be run" in check_for_update(ask).in_words()


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with two versions."""

    def do_GET(self) -> None:
        links = "".join(
            f'<a href="aifarm-{v}-py3-none-any.whl">aifarm-{v}-py3-none-any.whl</a>' for v in ("9.9", "0.0.1")
        )
        page = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def index_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    thread.join()
    server.server_close()


def run(**environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "farm_client", "update", "--check", "--json"]
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, capture_output=True, text=True, env=kept | environ, timeout=100, check=False)


@pytest.mark.skipif(not HAS_PIP, reason="this environment has no pip")
def test_the_real_pip_is_asked_with_its_owner_s_settings(index_url: str) -> None:
    done = run(PIP_INDEX_URL=index_url, PIP_CONFIG_FILE=os.devnull)
    told = json.loads(done.stdout)
    assert (done.returncode, told["kind"], told["data"]["newest"]) == (0, "client_update", "9.9")


def test_an_index_that_is_not_there_is_told_and_not_taken_for_the_newest(closed_port: int) -> None:
    done = run(PIP_INDEX_URL=f"http://127.0.0.1:{closed_port}/simple", PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0")
    told = json.loads(done.stdout)["data"]
    assert (done.returncode, told["newest"], bool(told["problem"])) == (1, None, True)


def test_without_check_nothing_is_done() -> None:
    command = [sys.executable, "-m", "farm_client", "update"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--check" in done.stderr
