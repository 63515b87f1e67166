"""The keeper of a container, with an imitated Podman: what that is told, and that nothing of it outlives the keeper."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from farm_client.agent.home import folder as homes
from farm_client.agent.home.folder import HomeFolder
from farm_client.sandbox.container import end_descendants
from farm_client.sandbox.halting import go_on, halt
from farm_client.sandbox.leftovers import end_leftovers
from farm_client.sandbox.lifeline import NOT_CONFINED
from farm_client.sandbox.podman import ContainerRun
from farm_client.sandbox.room import Room
from farm_client.sandbox.words import in_words

PODMAN = """#!%(python)s
import json, os, signal, sys, time
from pathlib import Path
passed = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--preserve-fds="))
lifeline, command = 2 + passed, sys.argv[-1]
told = {
    "argv": sys.argv[1:],
    "environment": dict(os.environ),
    "open": {number: os.readlink(f"/proc/self/fd/{number}") for number in range(3, 3 + passed)},
    "root": {link.name: str(link.readlink()) for link in Path(os.environ["HOME"], "root").iterdir()},
}
Path(%(told)r).write_text(json.dumps(told))
if command == "refuse":
    sys.exit("Error: no user namespaces")
if command == "hang":
    time.sleep(60)
if os.fork() == 0:  # the process that holds namespaces, and knows no lifeline
    os.setsid()
    os.closerange(0, 64)
    signal.pause()
if os.fork() == 0:  # the monitor
    os.setsid()
    if os.fork() == 0:
        if command == "tell":
            os.write(lifeline, b"131")
            signal.pause()
        if command == "die":
            os._exit(0)
        os.read(lifeline, 1)  # until the lifeline is cut
        signal.pause()
    os._exit(0)
os.wait()
"""
KEEPER = "import os; os.geteuid = lambda: 1000; from farm_client.sandbox import container; container.main()"


class Kept:
    """A room with an imitated Podman, and keepers in it."""

    def __init__(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        self.room, self.told_file = Room.make(home), tmp_path / "told.json"
        binary = tmp_path / "podman"
        binary.write_text(PODMAN % {"python": sys.executable, "told": str(self.told_file)})
        binary.chmod(0o755)
        self.run = ContainerRun(
            str(binary), str(self.room.root / "container"), ("--option",), {"/bin": "usr/bin"}, (), ("hold",)
        )
        self.started: list[subprocess.Popen[str]] = []

    def start(self, command: str, keep: tuple[int, ...] = (), agent: int | None = None) -> subprocess.Popen[str]:
        run = replace(self.run, command=(command,), keep=keep)
        process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(os.getpid() if agent is None else agent), in_words(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=keep,
            start_new_session=True,
            env={**os.environ, "FARM_TASK": "own"},
        )
        self.started.append(process)
        return process

    @property
    def told(self) -> dict[str, dict[str, str]]:
        return dict(json.loads(self.told_file.read_text()))

    def processes(self) -> list[psutil.Process]:
        """List what runs of it, wherever it went: whose command names this folder."""
        found, mark = [], str(self.told_file.parent)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(mark in word for word in process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    for process in (*kept.started, *kept.processes()):
        with suppress(psutil.Error, OSError):
            process.kill()
    for process in kept.started:
        process.communicate()


def until(what: object, happens: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_the_exit_code_comes_through_the_lifeline_and_all_ends_with_it(kept: Kept) -> None:
    process = kept.start("tell")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (131, "", "")
    assert kept.processes() == []
    assert not Path(kept.run.folder).exists(), "nothing of Podman's is left"


def test_a_container_that_ends_without_a_word_was_killed(kept: Kept) -> None:
    process = kept.start("die")
    process.communicate()
    assert process.returncode == 128 + signal.SIGKILL


def test_podman_is_told_no_more_than_this_and_the_container_the_given_environment(kept: Kept) -> None:
    kept.start("tell").communicate()
    folder = kept.run.folder
    assert set(kept.told["environment"]) - {"LC_CTYPE"} == {
        "HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "PATH", "GOMAXPROCS",
        "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF",
    }  # fmt: skip
    assert all(kept.told["environment"][name].startswith(folder) for name in ("HOME", "CONTAINERS_CONF"))
    argv = list(kept.told["argv"])
    assert argv.index("run") < argv.index("--option") < argv.index("--rootfs")
    assert argv[argv.index("--rootfs") + 1 :] == [f"{folder}/root", "tell"]
    assert "--env=FARM_TASK=own" in argv
    assert kept.told["root"] == {"bin": "usr/bin"}


def test_only_the_kept_descriptors_are_passed_and_the_lifeline_is_the_last(kept: Kept) -> None:
    reading, writing = os.pipe()
    high = fcntl.fcntl(writing, fcntl.F_DUPFD, 40)
    os.set_inheritable(reading, True)
    process = kept.start("tell", keep=(high,))
    for descriptor in (writing, high):
        os.close(descriptor)
    process.communicate()
    opened = kept.told["open"]
    assert sorted(map(int, opened)) == list(range(3, high + 2))
    assert opened.pop(str(high)).startswith("pipe:")
    assert opened.pop(str(high + 1)).startswith("socket:")
    assert set(opened.values()) == {"/dev/null"}
    assert os.read(reading, 1) == b"", "nobody holds what was passed"
    os.close(reading)


def test_what_podman_says_no_with_is_passed_on(kept: Kept) -> None:
    process = kept.start("refuse")
    _, err = process.communicate()
    assert process.returncode not in (0, None)
    assert err == "Error: no user namespaces\n"


def test_a_podman_that_is_not_there_says_so(kept: Kept) -> None:
    kept.run = replace(kept.run, binary="/nowhere/podman")
    process = kept.start("tell")
    _, err = process.communicate()
    assert (process.returncode, "could not be started: [Errno 2]" in err) == (NOT_CONFINED, True)


def test_roots_agent_is_told_that_it_needs_a_user(kept: Kept) -> None:
    from farm_client.sandbox import container

    assert "rootless" in container._ROOT
    code = KEEPER.replace("1000", "0")
    ended = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid()), in_words(kept.run)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (NOT_CONFINED, container._ROOT + "\n")


@pytest.mark.parametrize("command", ["hold", "hang"])
def test_who_kills_the_session_ends_all_and_the_room_is_removed_after(kept: Kept, command: str) -> None:
    """Also while Podman starts. Its processes lead sessions of their own, and the removal waits for their end."""
    process = kept.start(command)
    until("Podman was called", lambda: kept.told_file.exists() and kept.told_file.stat().st_size)
    if command == "hold":
        until("it is held", lambda: len(kept.processes()) >= 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept.room.remove()
    assert not kept.room.root.exists()
    assert [one for one in kept.processes() if one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_halted_one_goes_on_and_can_be_ended(kept: Kept) -> None:
    process = kept.start("hold")
    until("it is held", lambda: len(kept.processes()) >= 4)
    halt(process.pid, supervised=True)
    until("it is halted", lambda: sum(one.status() == psutil.STATUS_STOPPED for one in kept.processes()) >= 3)
    go_on(process.pid, supervised=True)
    until("it goes on", lambda: all(one.status() != psutil.STATUS_STOPPED for one in kept.processes()))
    assert process.poll() is None
    halt(process.pid, supervised=True)
    process.kill()
    process.communicate()
    until("all is gone", lambda: all(one.status() == psutil.STATUS_ZOMBIE for one in kept.processes()))
    assert not Path(kept.run.folder).exists()


def test_all_ends_with_an_agent_that_is_killed(kept: Kept) -> None:
    code = (
        "import os, subprocess, sys\n"
        "words = [str(os.getpid()) if word == 'AGENT' else word for word in sys.argv[1:]]\n"
        "subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL).wait()"
    )
    words = [sys.executable, "-c", KEEPER, "AGENT", in_words(kept.run)]
    agent = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    kept.started.append(agent)
    until("it is held", lambda: len(kept.processes()) >= 5)
    agent.kill()
    until("all is gone", lambda: all(one.status() == psutil.STATUS_ZOMBIE for one in kept.processes()))
    assert not Path(kept.run.folder).exists()


def test_who_waits_ends_the_rest_when_the_keeper_is_killed(kept: Kept) -> None:
    process = kept.start("hold")
    until("it is held", lambda: len(kept.processes()) >= 4)
    (keeper,) = psutil.Process(process.pid).children()
    keeper.kill()
    process.communicate()
    assert process.returncode == 128 + signal.SIGKILL
    assert kept.processes() == []


def test_the_next_agent_ends_what_two_killed_processes_left(kept: Kept) -> None:
    process = kept.start("hold")
    until("it is held", lambda: len(kept.processes()) >= 4)
    waiting = psutil.Process(process.pid)
    for one in (waiting, *waiting.children()):
        one.suspend()
    for one in (*waiting.children(), waiting):
        one.kill()
    process.wait()  # the pipes are open in what is left
    assert kept.processes(), "nobody was there to end them"
    end_leftovers(kept.room.root.parent / "other")
    end_leftovers(kept.room.root.parent)
    until("all is gone", lambda: all(one.status() == psutil.STATUS_ZOMBIE for one in kept.processes()))


def test_a_process_without_children_ends_none() -> None:
    code = "from farm_client.sandbox.container import end_descendants; end_descendants(); print('on')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "on\n"
    assert callable(end_descendants)


def test_an_agent_s_start_ends_the_leftovers_of_its_home_before_their_folders_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, seen = HomeFolder(tmp_path / "agent"), []
    (home.scratch_dir / "executor-1" / "container").mkdir(parents=True)
    monkeypatch.setattr(homes, "end_leftovers", lambda rooms: seen.extend(rooms.iterdir()))
    with home.held():
        assert [path.name for path in seen] == ["executor-1"]
        assert list(home.scratch_dir.iterdir()) == []
