"""`farm` as a process: closed or full streams, readers that leave, and terminals that are not UTF-8."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.farm_client.cli.fake_farm import TOKEN, FakeFarm, make_client, make_task

FARM = [sys.executable, "-m", "farm_client.cli.app"]


@pytest.fixture
def url(fake: FakeFarm) -> Iterator[str]:
    """The fake farm on a port of this machine; its names have letters that ASCII lacks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = fake.answer(httpx.Request("GET", f"http://x{self.path}", headers=dict(self.headers)))
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_arguments: object) -> None:
            pass

    fake.tasks = [make_task(f"abcd{number:04}", name="café-🙂-\x1b[31m") for number in range(2000)]
    fake.clients = [make_client("café-\u202e-\x1b[2J")]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{TOKEN}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(url: str, shell: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line in which ``farm`` is this project's; its environment has nothing but what is given."""
    line = shell.replace("farm ", f"{' '.join(FARM)} ")
    variables = {"FARM_URL": url, "PATH": "/usr/bin:/bin", **environ}
    return subprocess.run(["bash", "-c", line], capture_output=True, env=variables, check=False, timeout=60)


@pytest.mark.parametrize(
    "environ",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["PYTHONIOENCODING", "LC_ALL"],
)
def test_a_terminal_that_has_ascii_only(url: str, environ: dict[str, str]) -> None:
    done = run(url, "farm clients; farm ls; farm show caf\u00e9", **environ)
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr
    assert b"caf\\xe9-" in done.stdout
    assert b"\x1b" not in done.stdout


def test_closed_streams_and_full_ones(url: str) -> None:
    assert run(url, "farm clients >&-").stderr == b""
    assert b"Traceback" not in run(url, "farm ls --nosuch 2>&-").stdout
    full = run(url, "farm clients > /dev/full")
    assert (full.returncode, full.stderr) == (1, b"farm: No space left on device\n")
    assert run(url, "farm clients --json > /dev/full").returncode == 1
    assert run(url, "farm ls --nosuch 2> /dev/full").returncode == 2


def test_a_reader_that_leaves(url: str) -> None:
    done = run(url, "farm ls --all | head -1; farm ls --json | head -c 5; farm ls --nosuch 2>&1 >/dev/null | true")
    assert done.stderr == b""
