"""The command line in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from protocol.codec import decode, encode
from protocol.messages import Drain, Hello, Welcome
from protocol.versions import SUPPORTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
COMMAND = [sys.executable, "-m", "farm_server"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


@contextlib.contextmanager
def server(
    data: Path, *arguments: str, command: Sequence[str] = COMMAND
) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    process = subprocess.Popen(
        [*command, "up", "--data-dir", str(data), "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def one_line(answer: subprocess.CompletedProcess[str]) -> str:
    assert answer.returncode == 1, answer
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_up_tells_where_it_is_and_sigterm_ends_it(tmp_path):
    with server(tmp_path) as (process, info):
        on_disk = tmp_path / "server.json"
        assert json.loads(on_disk.read_text()) == info
        assert info["pid"] == process.pid
        assert stat.S_IMODE(on_disk.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "farm.token").stat().st_mode) == 0o600
        assert urllib.request.urlopen(info["url"] + "/readyz", timeout=30).read() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not on_disk.exists()


def test_tokens_outlive_the_server(tmp_path):
    with server(tmp_path) as (_, first):
        pass
    with server(tmp_path) as (_, second):
        pass
    assert [info["join_url"].partition("@")[0] for info in (first, second)] == [first["join_url"].partition("@")[0]] * 2


def test_a_killed_server_leaves_a_folder_that_starts_again(tmp_path):
    with server(tmp_path) as (process, _):
        process.kill()
        process.wait()
        assert run("status", "--data-dir", str(tmp_path)).returncode == 1
        doctor = json.loads(run("doctor", "--data-dir", str(tmp_path), "--port", "0", "--json").stdout)
        assert doctor["ok"], doctor
    with server(tmp_path) as (_, info):
        assert info["pid"]


def test_a_second_server_on_the_folder_or_the_port_fails_in_one_line(tmp_path):
    with server(tmp_path / "a") as (process, info):
        port = info["url"].rpartition(":")[2]
        same_folder = one_line(run("up", "--data-dir", str(tmp_path / "a"), "--port", "0"))
        assert str(process.pid) in same_folder
        assert "farm-server down" in same_folder
        same_port = one_line(run("up", "--data-dir", str(tmp_path / "b"), "--port", port))
        assert f"port {port}" in same_port
        assert urllib.request.urlopen(info["url"] + "/healthz", timeout=30).status == 200


def test_a_folder_that_is_a_file_fails_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "--data-dir" in one_line(run("up", "--data-dir", str(tmp_path / "file"), "--port", "0"))


def test_a_folder_that_cannot_be_made_fails_in_one_line():
    assert "--data-dir" in one_line(run("up", "--data-dir", "/proc/farm", "--port", "0"))


def test_an_address_that_is_not_ours_fails_in_one_line(tmp_path):
    assert "--host" in one_line(run("up", "--data-dir", str(tmp_path), "--host", "192.0.2.1", "--port", "0"))


def test_a_value_that_cannot_be_is_a_usage_error(tmp_path):
    assert run("up", "--data-dir", str(tmp_path), "--port", "99999").returncode == 2
    assert run("up", "--data-dir", str(tmp_path), "--log-format", "xml").returncode == 2
    assert run("explode").returncode == 2


def test_detached_it_is_controlled_by_its_folder(tmp_path):
    data = ("--data-dir", str(tmp_path))
    started = run("up", *data, "--port", "0", "--detach", "--json")
    info = json.loads(started.stdout)
    try:
        status = json.loads(run("status", *data, "--json").stdout)
        assert (status["pid"], status["farm"]["clients_online"]) == (info["pid"], 0)
        assert status["farm"]["pace"]["heartbeat_seconds"] >= 2.0
        assert status["farm"]["sent"] == {"bytes": 0, "frames": 0, "solo_messages": 0, "batched_messages": 0}
        said = run("status", *data).stdout
        assert "farm-client join ws://" in said
        assert "clients report every" in said
        assert "each task keeps its newest 100,000 log lines" in said
        assert json.loads(run("gc", *data, "--dry-run", "--json").stdout)["dry_run"] is True
        assert "are removed" in run("gc", *data).stdout
        again = one_line(run("up", *data, "--port", "0", "--detach"))
        assert "in use" in again
        assert json.loads(run("doctor", *data, "--json").stdout)["ok"]
    finally:
        stopped = run("down", *data, "--json")
    assert json.loads(stopped.stdout) == {"stopped": True, "pid": info["pid"]}
    assert "no server runs" in one_line(run("status", *data))
    assert "no server runs" in one_line(run("down", *data))
    assert json.loads(run("gc", *data, "--json").stdout)["rows"] == 0


def test_doctor_says_what_is_wrong(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = run("doctor", "--data-dir", str(tmp_path), "--port", str(taken.getsockname()[1]), "--json")
    findings = {f["name"]: f["ok"] for f in json.loads(answer.stdout)["findings"]}
    assert answer.returncode == 1
    assert (findings["port"], findings["folder"], findings["versions"]) == (False, True, True)


def test_a_damaged_ledger_fails_in_one_line_and_doctor_finds_it(tmp_path):
    (tmp_path / "farm.db").write_bytes(b"this is no database, " * 100)
    assert "farm.db" in one_line(run("up", "--data-dir", str(tmp_path), "--port", "0"))
    assert run("doctor", "--data-dir", str(tmp_path)).returncode == 1


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    """A client that never leaves would hold the first signal's drain for ten minutes."""
    monkeypatch.setenv("FARM_SERVER_DRAIN_SECONDS", "600")
    with server(tmp_path) as (process, info):
        scheme, _, place = info["join_url"].partition("://")
        token, _, host = place.partition("@")
        headers = {"Authorization": f"Bearer {token}"}
        with connect(f"{scheme}://{host}/v1/farm", additional_headers=headers, compression=None, proxy=None) as client:
            client.send(encode(Hello(versions=SUPPORTED, client_id="c1", client_secret="s" * 16)))
            assert isinstance(decode(client.recv()), Welcome)
            process.send_signal(signal.SIGINT)
            assert isinstance(decode(client.recv()), Drain)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


def test_version_and_help():
    assert run("--version").stdout.strip()
    assert run("up", "--help").returncode == 0


def test_status_asks_the_server_itself_and_not_what_stands_in_front_of_it(tmp_path):
    proxies = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    with server(tmp_path, "--public-url", "https://farm.invalid") as (_, info):
        status = run("status", "--data-dir", str(tmp_path), "--json", env=proxies)
        assert json.loads(status.stdout)["farm"]["clients_online"] == 0
        assert "farm.invalid" in info["join_url"]


def test_idle_connections_leave_a_server_with_few_files_its_own(tmp_path):
    limits = (64, 64)
    command = ["prlimit", f"--nofile={limits[0]}:{limits[1]}", *COMMAND]
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not here")
    arguments = [*command, "up", "--data-dir", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        info = json.loads(process.stdout.readline())
        parts = urlsplit(info["local_url"])
        idle = [socket.create_connection((parts.hostname, parts.port)) for _ in range(200)]
        try:
            for _ in range(20):
                assert urllib.request.urlopen(info["local_url"] + "/readyz", timeout=30).read() == b"ready\n"
            open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            assert open_files < limits[0] - 10
        finally:
            for connection in idle:
                connection.close()
            process.terminate()
        assert process.wait(20) == 0
