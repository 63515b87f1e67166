"""`farm-client join` as its owner meets it: a panel on a real terminal of any width, JSON lines for a program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from tests.e2e.conftest import RealFarm, wait_until

pytestmark = pytest.mark.slow

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
CODE = """
import torch
def build_model(config):
    return torch.nn.Linear(3, 1)
def loss(model, batch):
    return (model(batch['x']) - 1).square().mean()
"""


class JoinedOnTerminal:
    """`farm-client join` with a pseudo-terminal as its controlling one, and what it drew there."""

    def __init__(self, farm: RealFarm, home: Path, columns: int, url: str | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self._parts: list[bytes] = []
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        environ |= {"FARM_JOIN_URL": url or farm.processes.join_url, "TERM": "xterm-256color"}
        environ["FARM_CLIENT_SELF_TEST_FILE"] = str(farm.folder / "farm" / "self-test.json")
        command = [
            sys.executable,
            "-m",
            "farm_client",
            "join",
            "--home",
            str(home),
            "--name",
            "lab",
            "--cpu-cores",
            "1",
        ]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            preexec_fn=lambda: os.login_tty(os.dup(theirs)),  # noqa: PLW1509  its terminal sends it Ctrl-C
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._ours, 65536):
                self._parts.append(part)
        except OSError:  # its last holder has closed it
            return

    @property
    def drawn(self) -> str:
        return b"".join(self._parts).decode()

    @property
    def text(self) -> str:
        """What it drew, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)


@contextmanager
def joined(farm: RealFarm, home: Path, columns: int, url: str | None = None) -> Iterator[JoinedOnTerminal]:
    terminal = JoinedOnTerminal(farm, home, columns, url)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("columns", [60, 200])
def test_the_panel_follows_real_work_fits_and_leaves_the_terminal_as_it_was(
    shared_farm: RealFarm, tmp_path: Path, columns: int
) -> None:
    with joined(shared_farm, tmp_path / "home", columns) as terminal:
        wait_until(lambda: " connected" in terminal.text, "the panel says that it is connected")
        shared_farm.kill(shared_farm.volunteers[0].pid, signal.SIGSTOP)
        try:
            (tmp_path / "train.py").write_text(CODE)
            np.savez(tmp_path / "data.npz", x=np.arange(48, dtype=np.float32).reshape(16, 3) / 48)
            shared_farm.submit(str(tmp_path / "train.py"), "--data", str(tmp_path / "data.npz"), "--rounds", "40")
            wait_until(lambda: re.search(r"[1-9]\d* results? counted", terminal.text), "work is done and shown")
        finally:
            shared_farm.kill(shared_farm.volunteers[0].pid, signal.SIGCONT)
        terminal.press(b"\x03")
        assert terminal.process.wait(60) == 0
        wait_until(lambda: SHOW in terminal.drawn, "the cursor is back")
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        drawn, text = terminal.drawn, terminal.text
    assert drawn.rindex(SHOW) > drawn.rindex(HIDE)
    lines = text.replace("\r", "\n").split("\n")
    assert max(map(cell_len, lines)) <= columns
    for label in ("task ", "progress ", "sandbox ", "CPU ", "RAM ", "down ", "up "):
        assert any(line.startswith(label) for line in lines), label
    assert "left the farm; thank you" in text


def test_a_second_ctrl_c_leaves_the_terminal_as_it_was(shared_farm: RealFarm, tmp_path: Path) -> None:
    with joined(shared_farm, tmp_path / "home", 80) as terminal:
        wait_until(lambda: " connected" in terminal.text, "the panel says that it is connected")
        terminal.press(b"\x03\x03")
        assert terminal.process.wait(60) in (0, 1)
        drawn = terminal.drawn
    assert drawn.rindex(SHOW) > drawn.rindex(HIDE)


def test_a_second_join_shows_the_running_agent_and_leaves_it_running(shared_farm: RealFarm, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with joined(shared_farm, home, 80) as first:
        wait_until(lambda: " connected" in first.text, "the panel says that it is connected")
        with joined(shared_farm, home, 100) as second:
            wait_until(lambda: " connected" in second.text, "the second shows the first one's connection")
            assert "Ctrl-C: leave this view; the agent goes on" in second.text
            second.press(b"\x03")
            assert second.process.wait(60) == 0
            assert second.drawn.rindex(SHOW) > second.drawn.rindex(HIDE)
        with joined(shared_farm, home, 100, url="ws://token@127.0.0.1:1") as other:
            assert other.process.wait(60) == 1
            wait_until(lambda: "to work for ws://127.0.0.1:1 too" in other.text.replace("\r\n", " "), "it says why")
        assert first.process.poll() is None
        first.press(b"\x03")
        assert first.process.wait(60) == 0


def test_a_program_gets_json_lines_alone(shared_farm: RealFarm, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "farm_client", "join", "--json", "--home", str(tmp_path / "home")]
    environ = os.environ | {"FARM_JOIN_URL": shared_farm.processes.join_url}
    environ["FARM_CLIENT_SELF_TEST_FILE"] = str(shared_farm.folder / "farm" / "self-test.json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True) as agent:
        try:
            assert agent.stdout is not None
            told = []
            while not told or told[-1]["data"].get("connection") != "connected":
                told.append(json.loads(agent.stdout.readline()))
            agent.send_signal(signal.SIGTERM)
            told += map(json.loads, agent.stdout.readlines())
            assert agent.wait(60) == 0
        finally:
            agent.kill()
    assert {line["kind"] for line in told} == {"client_event", "client_status"}
    assert told[-1]["data"]["connection"] == "stopped"
    texts = [line["data"]["text"] for line in told if line["kind"] == "client_event"]
    assert "left the farm; thank you" in texts
