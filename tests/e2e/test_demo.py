"""`farm demo` and `farm run`: a whole farm by one command, which leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from farm_client.cli.exit_codes import ExitCode
from tests.e2e.conftest import run_farm, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the command keeps its farm: every process of it has this path on its command line."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def farm_processes(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or ())
    ]


def executors(folder: Path) -> list[int]:
    """List what the farm's own processes have started."""
    found = []
    for pid in farm_processes(folder):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected by its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_demo_trains_digits_and_leaves_nothing_running(temporary, tmp_path):
    output = tmp_path / "out"
    answer = run_farm("demo", "--json", "--output", str(output), TMPDIR=str(temporary))
    assert answer.exit_code == ExitCode.OK, answer.stderr
    report = answer.envelope("demo")
    assert report["accuracy"] >= 0.95
    assert report["rounds"] == 20
    assert sum(tensor.numel() for tensor in load_file(report["model"]).values()) > 1000
    assert "digits" in Path(report["page_copy"]).read_text()
    assert answer.envelopes("task")[-1]["state"] == "completed"
    assert farm_processes(temporary) == []
    assert list(temporary.glob("aifarm-*")) == []


def test_an_interrupted_demo_ends_its_farm(temporary, tmp_path):
    """Once its task is sent: before, it still imports, and Python may lose a Ctrl-C in the midst of an import."""
    said = tmp_path / "said"
    with said.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "farm_client.cli.app", "demo", "--output", str(tmp_path / "out")],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=file,
            # a suite in the background of a shell ignores SIGINT, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  no threads
        )
    try:
        wait_until(lambda: "sent " in said.read_text(), "the task is sent", 60)
        assert len(farm_processes(temporary)) >= 4, "a server and three volunteers"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == ExitCode.INTERRUPTED
    finally:
        demo.kill()
        demo.wait()
    assert "the local farm has ended" in said.read_text()
    assert farm_processes(temporary) == []
    assert list(temporary.glob("aifarm-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a killed process's children")
def test_nothing_outlives_a_demo_that_is_killed(temporary, tmp_path):
    said = tmp_path / "said"
    with said.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "farm_client.cli.app", "demo", "--keep", "--output", str(tmp_path / "out")],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=file,
            stderr=file,
        )

    def has_executors() -> bool:
        assert demo.poll() is None, said.read_text()
        return len(executors(temporary)) >= 3

    try:
        wait_until(has_executors, "every volunteer has an executor", 120)
        started = [*farm_processes(temporary), *executors(temporary)]
    finally:
        demo.kill()
        demo.wait()
    wait_until(lambda: not any(map(is_alive, started)), "all that the demo started is gone", 30)
    assert farm_processes(temporary) == []


ENDS = """

def on_epoch_end(model, epoch, out):
    (out / "epoch.txt").write_text(str(epoch))
"""


def test_run_trains_a_scaffolded_task_and_fetches_model_and_artefacts(temporary, tmp_path):
    folder = tmp_path / "mine"
    assert run_farm("init", str(folder)).exit_code == ExitCode.OK
    code = folder / "train.py"
    code.write_text(code.read_text() + ENDS)
    model = tmp_path / "model.safetensors"
    answer = run_farm(
        "run", str(folder), "--local", "2", "--rounds", "3", "-o", str(model), "--json", TMPDIR=str(temporary)
    )
    assert answer.exit_code == ExitCode.OK, answer.stderr
    assert answer.envelope("run")["path"] == str(model)
    assert load_file(model)
    left = sorted((tmp_path / "model-artefacts").glob("*/epoch.txt"))
    assert [file.read_text() for file in left] == ["0", "1", "2"]
    assert farm_processes(temporary) == []


def test_a_server_that_cannot_start_is_told_with_its_last_words(temporary, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "uvicorn.py").write_text("raise ImportError('no uvicorn today')")
    answer = run_farm("demo", "--output", str(tmp_path / "out"), TMPDIR=str(temporary), PYTHONPATH=str(broken))
    assert answer.exit_code == ExitCode.FAILURE
    assert "no uvicorn today" in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("farm: the server did not start")
    assert farm_processes(temporary) == []
